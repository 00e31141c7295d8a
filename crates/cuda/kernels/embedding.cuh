// Rows of a table by id, and the gradient of the table.
#pragma once
#include "common.cuh"

struct EmbeddingForward {
    const int *ids;
    const float *table;
    FloatsMut y;
    int64 rows;
    int width;
};

__device__ __forceinline__ void embedding_forward_elements(const EmbeddingForward &a) {
    for (int64 i = thread(); i < a.rows * a.width; i += threads())
        store(a.y, i, a.table[int64(a.ids[i / a.width]) * a.width + i % a.width]);
}

KERNEL(embedding_forward, EmbeddingForward, embedding_forward_elements)

struct EmbeddingBackward {
    const int *ids;
    Floats dy;
    float *dtable;
    int64 rows;
    int vocab;
    int width;
    int accumulate;
};

// A warp per row of the table: it looks for its id among all ids, and adds the gradients in their order. So no two warps
// add to one number, and the sums have a fixed order.
__device__ __forceinline__ void embedding_backward_rows(const EmbeddingBackward &a) {
    for (int64 id = int64(blockIdx.x) * warps() + warp(); id < a.vocab; id += int64(gridDim.x) * warps()) {
        float *dtable = a.dtable + id * a.width;
        if (!a.accumulate)
            for (int i = lane(); i < a.width; i += WARP_SIZE) dtable[i] = 0.0f;
        for (int64 first = 0; first < a.rows; first += WARP_SIZE) {
            const int64 row = first + lane();
            unsigned found = __ballot_sync(ALL_LANES, row < a.rows && a.ids[row] == id);
            while (found != 0) {
                const int64 dy = (first + __ffs(int(found)) - 1) * a.width;
                for (int i = lane(); i < a.width; i += WARP_SIZE) dtable[i] += load(a.dy, dy + i);
                found &= found - 1;
            }
        }
    }
}

KERNEL(embedding_backward, EmbeddingBackward, embedding_backward_rows)
