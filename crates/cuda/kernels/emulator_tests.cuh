// Kernels for tests of the emulator itself.
#pragma once
#include "common.cuh"

struct TestArguments {
    float *out;
};

__device__ __forceinline__ void barrier_in_half_of_the_threads(const TestArguments &) {
    if (threadIdx.x < blockDim.x / 2) __syncthreads();
}

KERNEL(test_missing_barrier, TestArguments, barrier_in_half_of_the_threads)

__device__ __forceinline__ void copy_unwritten_memory(const TestArguments &a) {
    SHARED(float, shared);
    a.out[thread()] = shared[threadIdx.x];
}

KERNEL(test_unwritten_memory, TestArguments, copy_unwritten_memory)

__device__ __forceinline__ void write_behind_shared_memory(const TestArguments &) {
    SHARED(float, shared);
    shared[threadIdx.x + 1] = 1.0f;
}

KERNEL(test_shared_memory_exceeded, TestArguments, write_behind_shared_memory)

// Without the barrier that it needs, the result depends on the order of the threads.
__device__ __forceinline__ void read_of_the_next_thread(const TestArguments &a) {
    SHARED(float, shared);
    shared[threadIdx.x] = 1.0f;
    a.out[thread()] = shared[(threadIdx.x + 1) % blockDim.x];
}

KERNEL(test_race, TestArguments, read_of_the_next_thread)

__device__ __forceinline__ void sums_of_a_block(const TestArguments &a) {
    SHARED(float, scratch);
    const float total = block_sum(float(threadIdx.x), scratch);
    const float largest = block_max(float(threadIdx.x), scratch);
    a.out[thread()] = total + largest;
}

KERNEL(test_block_reductions, TestArguments, sums_of_a_block)
