// The part of CUDA C++ that the kernels use, for compilers of the host: the threads of a block are fibers that take
// turns.
//
// A collective of a warp or a block stores what a thread contributes, and lets other threads run until all have arrived.
// Blocks run one after another. So wrong indices are found, and barriers that some threads do not reach; races between
// threads are found only if an order of the fibers exposes them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>
// Where the assembler of emulator.cpp is known.
#if defined(__x86_64__) && defined(__linux__)
#define HYBRIDNORM_CUDA_SWITCH
#else
#include <ucontext.h>
#endif

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __align__(bytes)

using std::isfinite;
using std::max;
using std::min;

struct Index {
    unsigned x;
};

namespace emulator {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 << 10;

// Arrivals at a point that all of a number of threads reach.
struct Barrier {
    unsigned arrived = 0;
    unsigned generation = 0;
};

// A point at which a thread goes on.
#ifdef HYBRIDNORM_CUDA_SWITCH
// Stack pointer; what a function must restore lies on the stack. Other than swapcontext(), switching makes no system call.
using Context = void *;
extern "C" void hybridnorm_cuda_switch(Context *from, Context *to);

inline void switch_to(Context &from, Context &to) { hybridnorm_cuda_switch(&from, &to); }

inline void prepare(Context &context, char *stack, size_t bytes, void (*start)()) {
    // Aligned as at the entry of a function: a return address lies at a multiple of 16, minus 8.
    void **top = reinterpret_cast<void **>(uintptr_t(stack + bytes) / 16 * 16) - 1;
    *--top = reinterpret_cast<void *>(start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context = top;
}
#else
using Context = ucontext_t;

inline void switch_to(Context &from, Context &to) { swapcontext(&from, &to); }

inline void prepare(Context &context, char *stack, size_t bytes, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}
#endif

struct Fiber {
    Context context;
    // Not initialized: pages that are not used take no memory.
    std::unique_ptr<char[]> stack;
    bool is_done = false;
};

// A block of threads that runs.
struct Block {
    void (*kernel)(const void *);
    const void *arguments;
    unsigned threads;
    Fiber fibers[MAX_THREADS];
    Context scheduler;
    Barrier barrier;
    Barrier warp_barriers[MAX_THREADS / WARP];
    uint64_t slots[MAX_THREADS];
    // Operands of a product of tiles: four pairs of the left one, two of the right one.
    unsigned tiles[MAX_THREADS][6];
    unsigned arrivals;
};

inline thread_local Block block;
inline thread_local std::vector<float> shared_memory;
inline thread_local Index thread_index, block_index, block_size, grid_size;

// Lets the next thread run.
inline void yield() { switch_to(block.fibers[thread_index.x].context, block.scheduler); }

// Returns when `expected` threads have called it.
inline void wait(Barrier &barrier, unsigned expected) {
    const unsigned generation = barrier.generation;
    block.arrivals += 1;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation += 1;
        return;
    }
    while (barrier.generation == generation) yield();
}

// Waits for the threads of this warp; blocks consist of whole warps.
inline void wait_for_warp() {
    const unsigned warp = thread_index.x / WARP;
    wait(block.warp_barriers[warp], WARP);
}

// Exchanges values between the threads of a warp; `source` is a lane.
template <class T> T exchange(T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    std::memcpy(&block.slots[thread_index.x], &value, sizeof(T));
    wait_for_warp();
    T result;
    std::memcpy(&result, &block.slots[thread_index.x / WARP * WARP + source], sizeof(T));
    wait_for_warp();
    return result;
}

// Element `half` of a pair of bfloat16 numbers.
inline float pair_element(unsigned pair, unsigned half) {
    const unsigned bits = half == 0 ? pair << 16 : pair & 0xffff0000;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// mma.m16n8k16: each thread of a warp holds parts of the operands and of the result.
inline void multiply_add(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    const unsigned first = thread_index.x / WARP * WARP, lane = thread_index.x % WARP;
    unsigned *own = block.tiles[thread_index.x];
    std::copy(left, left + 4, own);
    std::copy(right, right + 2, own + 4);
    wait_for_warp();
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned of_left = first + row % 8 * 4 + k % 8 / 2, of_right = first + column * 4 + k % 8 / 2;
            sums[i] += pair_element(block.tiles[of_left][row / 8 + k / 8 * 2], k % 2) *
                       pair_element(block.tiles[of_right][4 + k / 8], k % 2);
        }
    }
    wait_for_warp();
}

inline void run_thread() {
    block.kernel(block.arguments);
    block.fibers[thread_index.x].is_done = true;
    yield();
}

// Order in which the threads of a block take turns.
enum Order { FORWARD, BACKWARD, SHUFFLED };

// Result of a kernel.
enum Result { COMPLETE, BARRIER_NOT_REACHED, SHARED_MEMORY_EXCEEDED };

// Numbers behind the shared memory of a block, which it must not change.
constexpr size_t GUARD = 64;

// Runs all blocks of a kernel.
inline Result run(void (*const kernel)(const void *), const void *arguments, unsigned blocks, unsigned threads,
                unsigned shared_bytes, int order) {
    grid_size.x = blocks;
    block_size.x = threads;
    uint64_t random = 1;
    for (block_index.x = 0; block_index.x < blocks; ++block_index.x) {
        // All bits set: not a number, so that results of memory that was never written are found.
        const size_t guard = (shared_bytes + 3) / 4;
        shared_memory.resize(guard + GUARD);
        std::memset(shared_memory.data(), 0xff, shared_memory.size() * 4);
        block.kernel = kernel;
        block.arguments = arguments;
        block.threads = threads;
        block.barrier = Barrier();
        for (auto &barrier : block.warp_barriers) barrier = Barrier();
        for (unsigned i = 0; i < threads; ++i) {
            Fiber &fiber = block.fibers[i];
            if (fiber.stack == nullptr) fiber.stack.reset(new char[STACK_BYTES]);
            fiber.is_done = false;
            prepare(fiber.context, fiber.stack.get(), STACK_BYTES, run_thread);
        }
        for (unsigned running = threads; running > 0;) {
            const unsigned before = running;
            block.arrivals = 0;
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            const unsigned offset = order == SHUFFLED ? unsigned(random >> 33) : 0;
            // Odd, so that it visits every number below a power of two.
            const unsigned stride = order == SHUFFLED ? unsigned(random >> 20) | 1 : 1;
            for (unsigned turn = 0; turn < MAX_THREADS; ++turn) {
                const unsigned at = (offset + turn * stride) % MAX_THREADS;
                if (at >= threads) continue;
                const unsigned i = order == BACKWARD ? threads - 1 - at : at;
                if (block.fibers[i].is_done) continue;
                thread_index.x = i;
                switch_to(block.scheduler, block.fibers[i].context);
                running -= block.fibers[i].is_done;
            }
            if (running == before && block.arrivals == 0) return BARRIER_NOT_REACHED;
        }
        for (size_t i = guard; i < shared_memory.size(); ++i) {
            unsigned bits;
            std::memcpy(&bits, &shared_memory[i], sizeof bits);
            if (bits != ~0u) return SHARED_MEMORY_EXCEEDED;
        }
    }
    return COMPLETE;
}

} // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::wait(emulator::block.barrier, emulator::block.threads); }
inline void __syncwarp() { emulator::wait_for_warp(); }
template <class T> T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return emulator::exchange(value, threadIdx.x % emulator::WARP ^ mask);
}
template <class T> T __shfl_sync(unsigned, T value, unsigned lane) { return emulator::exchange(value, lane); }

inline unsigned __ballot_sync(unsigned, bool is_set) {
    const unsigned first = threadIdx.x / emulator::WARP * emulator::WARP;
    emulator::block.slots[threadIdx.x] = is_set;
    emulator::wait_for_warp();
    unsigned all = 0;
    for (unsigned i = 0; i < emulator::WARP; ++i) all |= unsigned(emulator::block.slots[first + i]) << i;
    emulator::wait_for_warp();
    return all;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

#define SHARED(T, name) T *name = reinterpret_cast<T *>(emulator::shared_memory.data())

namespace emulator {

struct Kernel {
    const char *name;
    void (*function)(const void *);
};

inline std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

struct Registration {
    Registration(const char *name, void (*function)(const void *)) { kernels().push_back({name, function}); }
};

} // namespace emulator

// An entry point: its name, its arguments, and the function that a thread runs.
#define KERNEL(name, Arguments, function)                                                                              \
    static void name(const void *arguments) { function(*static_cast<const Arguments *>(arguments)); }                  \
    static const emulator::Registration name##_registration(#name, name);
