// Products of experts in bfloat16 on tensor cores, for widths that are multiples of 8. A block of four warps computes a tile
// of 64 x 64, each warp 16 of its rows.
#pragma once
#include "experts.cuh"
#include "mma.cuh"

// Rows and columns of a tile, and its steps of the inner dimension at a time.
constexpr int GROUP_TILE = 64;
constexpr int GROUP_STEP = 32;

// Fills a tile in shared memory, whose rows of `width` are `width + 8` apart, with the chunks of 8 elements at
// `source(row, first)`; zeros where that is null.
template <class Source>
__device__ __forceinline__ void fill_tile(bf16_bits *out, int rows, int width, const Source &source) {
    const int chunks = width / 8;
    for (int i = int(threadIdx.x); i < rows * chunks; i += int(blockDim.x)) {
        const int row = i / chunks, first = i % chunks * 8;
        const bf16_bits *x = source(row, first);
        Chunk chunk = {};
        if (x != nullptr) chunk = *reinterpret_cast<const Chunk *>(x);
        *reinterpret_cast<Chunk *>(out + row * (width + 8) + first) = chunk;
    }
}

// Computes a tile of the product of a (rows, inner) and b (inner, columns), and stores its elements. `left(i, l)` is the
// address of 8 elements of row i from inner index l on, or of column l from row i on if LEFT_BY_INNER; `right(j, l)` of
// column j from l on, or of inner index l from column j on if RIGHT_BY_INNER; null beyond the matrix.
template <bool LEFT_BY_INNER, bool RIGHT_BY_INNER, class Left, class Right, class Store>
__device__ __forceinline__ void tile_product_mma(const Left &left, const Right &right, int inner, const Store &store) {
    SHARED(bf16_bits, shared);
    constexpr int BY_ROW = GROUP_STEP + 8, BY_INNER = GROUP_TILE + 8;
    bf16_bits *a = shared, *b = shared + GROUP_TILE * BY_ROW;
    SumTile sums[GROUP_TILE / 8] = {};
    for (int start = 0; start < inner; start += GROUP_STEP) {
        __syncthreads();
        if (LEFT_BY_INNER)
            fill_tile(a, GROUP_STEP, GROUP_TILE, [&](int l, int i) { return start + l < inner ? left(i, start + l) : nullptr; });
        else
            fill_tile(a, GROUP_TILE, GROUP_STEP, [&](int i, int l) { return start + l < inner ? left(i, start + l) : nullptr; });
        if (RIGHT_BY_INNER)
            fill_tile(b, GROUP_STEP, GROUP_TILE, [&](int l, int j) { return start + l < inner ? right(j, start + l) : nullptr; });
        else
            fill_tile(b, GROUP_TILE, GROUP_STEP, [&](int j, int l) { return start + l < inner ? right(j, start + l) : nullptr; });
        __syncthreads();
#pragma unroll
        for (int step = 0; step < GROUP_STEP; step += 16) {
            const LeftTile own = LEFT_BY_INNER ? load_columns_as_left(a + step * BY_INNER + 16 * warp(), BY_INNER)
                                               : load_left(a + 16 * warp() * BY_ROW + step, BY_ROW);
#pragma unroll
            for (int n = 0; n < GROUP_TILE / 8; ++n)
                multiply_add(sums[n], own, RIGHT_BY_INNER ? load_rows_as_right(b + step * BY_INNER + 8 * n, BY_INNER)
                                                          : load_columns_as_right(b + 8 * n * BY_ROW + step, BY_ROW));
        }
    }
#pragma unroll
    for (int n = 0; n < GROUP_TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            store(16 * warp() + tile_row() + i / 2 * 8, 8 * n + tile_column() + i % 2, sums[n].sums[i]);
}

template <bool W_BY_INNER> __device__ __forceinline__ void expert_product_mma_tile(const ExpertProduct &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    const ExpertTile tile = expert_tile(d, a.experts, a.columns, GROUP_TILE);
    if (tile.expert == a.experts) return;
    const bf16_bits *x = static_cast<const bf16_bits *>(a.x.data);
    const bf16_bits *w = static_cast<const bf16_bits *>(a.w.data) + int64(tile.expert) * a.inner * a.columns;
    tile_product_mma<false, W_BY_INNER>(
        [&](int i, int l) -> const bf16_bits * {
            if (i >= tile.rows) return nullptr;
            const int slot = tile.first + i;
            const int64 row = a.gathers ? d.assignment_of_slot[slot] / a.top_k : slot;
            return x + row * a.inner + l;
        },
        [&](int j, int l) -> const bf16_bits * {
            const int column = tile.first_column + j;
            return column < a.columns ? w + int64(l) * a.inner_stride + int64(column) * a.column_stride : nullptr;
        },
        a.inner,
        [&](int i, int j, float sum) {
            if (i < tile.rows && tile.first_column + j < a.columns)
                store(a.y, int64(tile.first + i) * a.columns + tile.first_column + j, sum);
        });
}

KERNEL(expert_product_mma, ExpertProduct, expert_product_mma_tile<false>)
KERNEL(expert_input_gradient_mma, ExpertProduct, expert_product_mma_tile<true>)

__device__ __forceinline__ void expert_weight_gradient_mma_tile(const ExpertWeightGradient &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    const int output_tiles = (a.outputs + GROUP_TILE - 1) / GROUP_TILE;
    const int input_tiles = (a.inputs + GROUP_TILE - 1) / GROUP_TILE;
    const int expert = int(blockIdx.x) / (output_tiles * input_tiles);
    const int output = int(blockIdx.x) / input_tiles % output_tiles * GROUP_TILE;
    const int input = int(blockIdx.x) % input_tiles * GROUP_TILE;
    const int first = d.offsets[expert];
    const bf16_bits *dy = static_cast<const bf16_bits *>(a.dy.data), *x = static_cast<const bf16_bits *>(a.x.data);
    const auto row = [&](int slot, int gathers) -> int64 {
        return gathers ? d.assignment_of_slot[first + slot] / a.top_k : first + slot;
    };
    tile_product_mma<true, true>(
        [&](int i, int l) { return output + i < a.outputs ? dy + row(l, a.gathers_dy) * a.outputs + output + i : nullptr; },
        [&](int j, int l) { return input + j < a.inputs ? x + row(l, a.gathers_x) * a.inputs + input + j : nullptr; },
        d.load[expert],
        [&](int i, int j, float sum) {
            if (output + i < a.outputs && input + j < a.inputs)
                a.dw[(int64(expert) * a.outputs + output + i) * a.inputs + input + j] = sum;
        });
}

KERNEL(expert_weight_gradient_mma, ExpertWeightGradient, expert_weight_gradient_mma_tile)
