// Tensor cores: products of tiles of bfloat16 numbers, with sums in single precision (sm_80 and later).
#pragma once
#include "common.cuh"

// 16 bytes, which a thread loads and stores at once.
struct __align__(16) Chunk {
    unsigned words[4];
};

// What a lane holds of tiles, as the PTX manual lays them out for m16n8k16. `row` is lane / 4, `column` lane % 4 * 2.

// (16, 16), rows of pairs: (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8).
struct LeftTile {
    unsigned pairs[4];
};
// (16, 8), columns of pairs: (column, row), (column + 8, row).
struct RightTile {
    unsigned pairs[2];
};
// (16, 8): (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
struct SumTile {
    float sums[4];
};

__device__ __forceinline__ int tile_row() { return lane() / 4; }
__device__ __forceinline__ int tile_column() { return lane() % 4 * 2; }

// sum += left right
__device__ __forceinline__ void multiply_add(SumTile &sum, const LeftTile &left, const RightTile &right) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum.sums[0]), "+f"(sum.sums[1]), "+f"(sum.sums[2]), "+f"(sum.sums[3])
                 : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "r"(right.pairs[0]),
                   "r"(right.pairs[1]));
#else
    emulator::multiply_add(sum.sums, left.pairs, right.pairs);
#endif
}

// Two neighbouring elements.
__device__ __forceinline__ unsigned load_pair(const bf16_bits *x) { return *reinterpret_cast<const unsigned *>(x); }

__device__ __forceinline__ unsigned narrow_pair(float first, float second) {
    return unsigned(narrow(first)) | unsigned(narrow(second)) << 16;
}

// Loads (16, 8) from rows in shared memory, which are `stride` apart and begin at multiples of 16 bytes.
__device__ __forceinline__ RightTile load_rows_as_right(const bf16_bits *rows, int stride) {
    RightTile tile;
#ifdef __CUDACC__
    const unsigned address = unsigned(__cvta_generic_to_shared(rows + lane() % 16 * stride));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(tile.pairs[0]), "=r"(tile.pairs[1])
                 : "r"(address)
                 : "memory");
#else
    for (int half = 0; half < 2; ++half) {
        const bf16_bits *x = rows + (8 * half + tile_column()) * stride + tile_row();
        tile.pairs[half] = unsigned(x[0]) | unsigned(x[stride]) << 16;
    }
#endif
    return tile;
}

// Loads (16, 8) from columns in shared memory: column i begins at `columns + i * stride`.
__device__ __forceinline__ RightTile load_columns_as_right(const bf16_bits *columns, int stride) {
    const bf16_bits *x = columns + tile_row() * stride + tile_column();
    return {{load_pair(x), load_pair(x + 8)}};
}

// Loads (16, 16) from rows, of which `x` is the first.
__device__ __forceinline__ LeftTile load_left(const bf16_bits *x, int64 stride) {
    const bf16_bits *top = x + tile_row() * stride + tile_column(), *bottom = top + 8 * stride;
    return {{load_pair(top), load_pair(bottom), load_pair(top + 8), load_pair(bottom + 8)}};
}

// Loads the transpose (16, 16) of rows in shared memory, which are `stride` apart and begin at multiples of 16 bytes.
__device__ __forceinline__ LeftTile load_columns_as_left(const bf16_bits *rows, int stride) {
    LeftTile tile;
#ifdef __CUDACC__
    const bf16_bits *own = rows + (lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8;
    const unsigned address = unsigned(__cvta_generic_to_shared(own));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tile.pairs[0]), "=r"(tile.pairs[1]), "=r"(tile.pairs[2]), "=r"(tile.pairs[3])
                 : "r"(address)
                 : "memory");
#else
    for (int i = 0; i < 4; ++i) {
        const bf16_bits *x = rows + (i / 2 * 8 + tile_column()) * stride + i % 2 * 8 + tile_row();
        tile.pairs[i] = unsigned(x[0]) | unsigned(x[stride]) << 16;
    }
#endif
    return tile;
}

// Sums of two neighbouring tiles are laid out as the left operand of the next product.
__device__ __forceinline__ LeftTile narrow_tiles(const SumTile &even, const SumTile &odd) {
    return {{narrow_pair(even.sums[0], even.sums[1]), narrow_pair(even.sums[2], even.sums[3]),
             narrow_pair(odd.sums[0], odd.sums[1]), narrow_pair(odd.sums[2], odd.sums[3])}};
}

// Copies rows of WIDTH elements to shared memory, where they are WIDTH + 8 apart, so that the lanes of a tile read different
// banks. Rows from `count` on are zero.
template <int WIDTH>
__device__ __forceinline__ void copy_rows(const bf16_bits *x, int64 stride, int rows, int count, bf16_bits *out) {
    constexpr int CHUNKS = WIDTH / 8;
    for (int i = int(threadIdx.x); i < rows * CHUNKS; i += int(blockDim.x)) {
        const int row = i / CHUNKS, first = i % CHUNKS * 8;
        Chunk chunk = {};
        if (row < count) chunk = *reinterpret_cast<const Chunk *>(x + row * stride + first);
        *reinterpret_cast<Chunk *>(out + row * (WIDTH + 8) + first) = chunk;
    }
}
