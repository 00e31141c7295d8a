// Products of dispatched tokens with the matrices of their experts, and the combination of their results.
//
// Slots are sorted by expert. A block computes a tile of the slots of one expert, which it finds by the loads, since the
// host does not know them: there are as many blocks as there could be tiles.
#pragma once
#include "router.cuh"

// Rows, columns and steps of a tile, for blocks of 256 threads.
constexpr int PRODUCT_TILE = 32;
constexpr int PRODUCT_ROWS = PRODUCT_TILE * PRODUCT_TILE / 256;

// Computes the product of a (rows, inner) and b (inner, columns), at most a tile of each, and stores its elements.
template <class A, class B, class Store>
__device__ __forceinline__ void tile_product(const A &a, const B &b, int rows, int columns, int inner, const Store &store) {
    SHARED(float, shared);
    float *left = shared, *right = shared + PRODUCT_TILE * (PRODUCT_TILE + 1);
    const int column = int(threadIdx.x) % PRODUCT_TILE, first_row = int(threadIdx.x) / PRODUCT_TILE * PRODUCT_ROWS;
    float sums[PRODUCT_ROWS] = {};
    for (int start = 0; start < inner; start += PRODUCT_TILE) {
        for (int i = int(threadIdx.x); i < PRODUCT_TILE * PRODUCT_TILE; i += int(blockDim.x)) {
            const int major = i / PRODUCT_TILE, minor = i % PRODUCT_TILE, at = major * (PRODUCT_TILE + 1) + minor;
            left[at] = major < rows && start + minor < inner ? a(major, start + minor) : 0.0f;
            right[at] = start + major < inner && minor < columns ? b(start + major, minor) : 0.0f;
        }
        __syncthreads();
        for (int step = 0; step < PRODUCT_TILE; ++step) {
            const float b_step = right[step * (PRODUCT_TILE + 1) + column];
#pragma unroll
            for (int r = 0; r < PRODUCT_ROWS; ++r) sums[r] += left[(first_row + r) * (PRODUCT_TILE + 1) + step] * b_step;
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < PRODUCT_ROWS; ++r)
        if (first_row + r < rows && column < columns) store(first_row + r, column, sums[r]);
}

struct ExpertProduct {
    // Rows by slot, or by token.
    Floats x;
    Floats w;
    // (slots, columns)
    FloatsMut y;
    int *dispatch;
    int64 assignments;
    int experts;
    int top_k;
    // 1: row i of x is that of token i.
    int gathers;
    int inner;
    int columns;
    // Elements of w from an inner index to the next, and from a column to the next.
    int inner_stride;
    int column_stride;
};

// Slots first .. first + rows of an expert, and a first column of its product.
struct ExpertTile {
    int expert;
    int first;
    int rows;
    int first_column;
};

// Returns the tile of this block, of a grid of tiles of `size` rows and columns; `experts` as expert beyond the last.
__device__ __forceinline__ ExpertTile expert_tile(const Dispatch &d, int experts, int columns, int size) {
    const int column_tiles = (columns + size - 1) / size;
    int tile = int(blockIdx.x) / column_tiles;
    for (int expert = 0; expert < experts; ++expert) {
        const int tiles = (d.load[expert] + size - 1) / size;
        if (tile < tiles) {
            const int first = d.offsets[expert] + tile * size;
            return {expert, first, min(size, d.offsets[expert + 1] - first), int(blockIdx.x) % column_tiles * size};
        }
        tile -= tiles;
    }
    return {experts, 0, 0, 0};
}

__device__ __forceinline__ void expert_product_tile(const ExpertProduct &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    const ExpertTile tile = expert_tile(d, a.experts, a.columns, PRODUCT_TILE);
    if (tile.expert == a.experts) return;
    const int first = tile.first, rows = tile.rows, first_column = tile.first_column;
    const int64 matrix = int64(tile.expert) * a.inner * a.columns;
    tile_product(
        [&](int i, int l) {
            const int64 row = a.gathers ? d.assignment_of_slot[first + i] / a.top_k : first + i;
            return load(a.x, row * a.inner + l);
        },
        [&](int l, int j) {
            return load(a.w, matrix + int64(l) * a.inner_stride + int64(first_column + j) * a.column_stride);
        },
        rows, min(PRODUCT_TILE, a.columns - first_column), a.inner,
        [&](int i, int j, float sum) { store(a.y, int64(first + i) * a.columns + first_column + j, sum); });
}

KERNEL(expert_product, ExpertProduct, expert_product_tile)

struct ExpertWeightGradient {
    // (slots or tokens, outputs) and (slots or tokens, inputs).
    Floats dy;
    Floats x;
    // (experts, outputs, inputs)
    float *dw;
    int *dispatch;
    int64 assignments;
    int experts;
    int top_k;
    int gathers_dy;
    int gathers_x;
    int outputs;
    int inputs;
};

__device__ __forceinline__ void expert_weight_gradient_tile(const ExpertWeightGradient &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    const int output_tiles = (a.outputs + PRODUCT_TILE - 1) / PRODUCT_TILE;
    const int input_tiles = (a.inputs + PRODUCT_TILE - 1) / PRODUCT_TILE;
    const int expert = int(blockIdx.x) / (output_tiles * input_tiles);
    const int output = int(blockIdx.x) / input_tiles % output_tiles * PRODUCT_TILE;
    const int input = int(blockIdx.x) % input_tiles * PRODUCT_TILE;
    const int first = d.offsets[expert];
    const auto row = [&](int slot, int gathers) -> int64 {
        return gathers ? d.assignment_of_slot[first + slot] / a.top_k : first + slot;
    };
    tile_product([&](int i, int l) { return load(a.dy, row(l, a.gathers_dy) * a.outputs + output + i); },
                 [&](int l, int j) { return load(a.x, row(l, a.gathers_x) * a.inputs + input + j); },
                 min(PRODUCT_TILE, a.outputs - output), min(PRODUCT_TILE, a.inputs - input), d.load[expert],
                 [&](int i, int j, float sum) {
                     a.dw[(int64(expert) * a.outputs + output + i) * a.inputs + input + j] = sum;
                 });
}

KERNEL(expert_weight_gradient, ExpertWeightGradient, expert_weight_gradient_tile)

struct CombineExperts {
    // (slots, width)
    Floats slots;
    // (tokens, top_k); null: 1.
    const float *weights;
    FloatsMut y;
    int *dispatch;
    int64 tokens;
    int experts;
    int top_k;
    int width;
};

__device__ __forceinline__ void combine_experts_of_elements(const CombineExperts &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.tokens * a.top_k);
    for (int64 i = thread(); i < a.tokens * a.width; i += threads()) {
        const int64 token = i / a.width, column = i % a.width;
        float sum = 0.0f;
        for (int j = 0; j < a.top_k; ++j) {
            const int64 assignment = token * a.top_k + j;
            const float x = load(a.slots, int64(d.slot_of_assignment[assignment]) * a.width + column);
            sum += a.weights == nullptr ? x : a.weights[assignment] * x;
        }
        store(a.y, i, sum);
    }
}

KERNEL(combine_experts, CombineExperts, combine_experts_of_elements)

// Gradients of the gate weights: dot products of hidden rows and their gradients, which are then multiplied by the weights.
struct WeightSlots {
    FloatsMut hidden;
    FloatsMut dhidden;
    const float *weights;
    float *dweights;
    int *dispatch;
    int64 assignments;
    int experts;
    int width;
};

__device__ __forceinline__ void weight_slots_of_warps(const WeightSlots &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    for (int64 slot = int64(blockIdx.x) * warps() + warp(); slot < a.assignments; slot += int64(gridDim.x) * warps()) {
        const int assignment = d.assignment_of_slot[slot];
        const float weight = a.weights[assignment];
        float dot = 0.0f;
        for (int i = lane(); i < a.width; i += WARP_SIZE) {
            const int64 at = slot * a.width + i;
            const float h = load(a.hidden, at), dh = load(a.dhidden, at);
            dot += h * dh;
            store(a.hidden, at, weight * h);
            store(a.dhidden, at, weight * dh);
        }
        dot = warp_sum(dot);
        if (lane() == 0) a.dweights[assignment] = dot;
    }
}

KERNEL(weight_slots, WeightSlots, weight_slots_of_warps)
