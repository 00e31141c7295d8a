// What all kernels share: element types, reductions, entry points.
//
// Every kernel takes one struct by value. Rows lie one after another in memory; an operand is in single precision or
// bfloat16, which a kernel learns at run time: the branch is the same for all threads, and costs nothing beside the
// memory that it saves.
#pragma once

#ifdef __CUDACC__
// NVRTC has no <math.h>.
#define INFINITY __uint_as_float(0x7f800000)
#define KERNEL(name, Arguments, function)                                                                              \
    extern "C" __global__ void name(const Arguments arguments) { function(arguments); }
#define SHARED(T, name)                                                                                                \
    extern __shared__ __align__(16) unsigned char shared_bytes[];                                                      \
    T *name = reinterpret_cast<T *>(shared_bytes)
#else
#include "emulator.h"
#endif

typedef unsigned short bf16_bits;
typedef long long int64;

#define NOT_A_NUMBER __uint_as_float(0x7fc00000)

constexpr int WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// Elements in single precision or bfloat16.
struct Floats {
    const void *data;
    int is_bf16;
};

struct FloatsMut {
    void *data;
    int is_bf16;
};

// Arguments of a run, which the host writes before it.
struct RunArguments {
    double lr;
    // Counted from 1.
    int64 step;
    // Cached positions before those of this run.
    int64 past;
};

__device__ __forceinline__ float widen(bf16_bits x) { return __uint_as_float(unsigned(x) << 16); }

// Rounds to nearest even; NaN stays NaN.
__device__ __forceinline__ bf16_bits narrow(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return bf16_bits(bits >> 16 | 0x40);
    return bf16_bits((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ float load(const Floats &x, int64 i) {
    return x.is_bf16 ? widen(static_cast<const bf16_bits *>(x.data)[i]) : static_cast<const float *>(x.data)[i];
}

__device__ __forceinline__ float load(const FloatsMut &x, int64 i) { return load(Floats{x.data, x.is_bf16}, i); }

__device__ __forceinline__ void store(const FloatsMut &x, int64 i, float value) {
    if (x.is_bf16)
        static_cast<bf16_bits *>(x.data)[i] = narrow(value);
    else
        static_cast<float *>(x.data)[i] = value;
}

// Sum over the lanes of a warp, in a fixed order: the same bits in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, mask));
    return x;
}

// Sum over the threads of a block, in a fixed order; `scratch` has an element for each warp.
template <class T> __device__ __forceinline__ T block_sum(T x, T *scratch) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
    if (threadIdx.x % WARP_SIZE == 0) scratch[threadIdx.x / WARP_SIZE] = x;
    __syncthreads();
    T total = 0;
    for (unsigned w = 0; w < blockDim.x / WARP_SIZE; ++w) total += scratch[w];
    // The next sum may use the scratch memory.
    __syncthreads();
    return total;
}

// As `block_sum`, for the maximum.
__device__ __forceinline__ float block_max(float x, float *scratch) {
    x = warp_max(x);
    if (threadIdx.x % WARP_SIZE == 0) scratch[threadIdx.x / WARP_SIZE] = x;
    __syncthreads();
    float largest = scratch[0];
    for (unsigned w = 1; w < blockDim.x / WARP_SIZE; ++w) largest = fmaxf(largest, scratch[w]);
    __syncthreads();
    return largest;
}

__device__ __forceinline__ int lane() { return int(threadIdx.x % WARP_SIZE); }
__device__ __forceinline__ int warp() { return int(threadIdx.x / WARP_SIZE); }
__device__ __forceinline__ int warps() { return int(blockDim.x / WARP_SIZE); }
// Index of this thread among all of the grid, and their number.
__device__ __forceinline__ int64 thread() { return int64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64 threads() { return int64(gridDim.x) * blockDim.x; }

// Adds the sums of all warps of a block, (warps, count) in shared memory, and stores them in row `blockIdx.x` of
// `partials` (blocks, count).
__device__ __forceinline__ void store_block_sums(const float *sums, float *partials, int count) {
    __syncthreads();
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
        float total = 0.0f;
        for (int w = 0; w < warps(); ++w) total += sums[w * count + i];
        partials[int64(blockIdx.x) * count + i] = total;
    }
}
