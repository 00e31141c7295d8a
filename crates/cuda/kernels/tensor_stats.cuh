// Root mean square and largest absolute value of elements.
#pragma once
#include "common.cuh"

// NaN if one is NaN.
__device__ __forceinline__ double larger_or_nan(double x, double y) { return x != x || x > y ? x : y; }

__device__ __forceinline__ double block_max_or_nan(double x, double *scratch) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) {
        const double other = __shfl_xor_sync(ALL_LANES, x, mask);
        x = larger_or_nan(x, other);
    }
    if (lane() == 0) scratch[warp()] = x;
    __syncthreads();
    double largest = scratch[0];
    for (int w = 1; w < warps(); ++w) largest = larger_or_nan(scratch[w], largest);
    __syncthreads();
    return largest;
}

struct TensorStats {
    Floats x;
    // (blocks, 2): sums of squares, and largest absolute values.
    double *partials;
    int64 count;
};

__device__ __forceinline__ void tensor_stats_of_block(const TensorStats &a) {
    SHARED(double, scratch);
    double squares = 0.0, largest = 0.0;
    for (int64 i = thread(); i < a.count; i += threads()) {
        const double x = double(load(a.x, i));
        squares += x * x;
        largest = larger_or_nan(fabs(x), largest);
    }
    squares = block_sum(squares, scratch);
    largest = block_max_or_nan(largest, scratch);
    if (threadIdx.x == 0) {
        a.partials[2 * blockIdx.x] = squares;
        a.partials[2 * blockIdx.x + 1] = largest;
    }
}

KERNEL(tensor_stats, TensorStats, tensor_stats_of_block)

struct TensorStatsTotal {
    const double *partials;
    // Root mean square, and largest absolute value.
    double *found;
    int64 count;
    int blocks;
};

// Runs in one thread.
__device__ __forceinline__ void tensor_stats_total_of(const TensorStatsTotal &a) {
    if (thread() != 0) return;
    double squares = 0.0, largest = 0.0;
    for (int i = 0; i < a.blocks; ++i) {
        squares += a.partials[2 * i];
        largest = larger_or_nan(a.partials[2 * i + 1], largest);
    }
    a.found[0] = sqrt(squares / double(a.count > 0 ? a.count : 1));
    a.found[1] = largest;
}

KERNEL(tensor_stats_total, TensorStatsTotal, tensor_stats_total_of)
