// Attention of bfloat16 queries, keys and values on tensor cores, for heads of 64 or 128 channels: an online softmax over
// tiles of keys, as in FlashAttention-2 (Dao, arXiv 2307.08691). A warp computes 16 queries.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

constexpr int MMA_ROWS = 16;
constexpr int MMA_WARPS = 4;
constexpr int MMA_KEYS = 64;

// Of the four lanes that hold a row of a tile.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Stores row `tile_row() + 8 r` of tiles, divided by a number, from `at` on.
template <int TILES>
__device__ __forceinline__ void store_row(const FloatsMut &out, int64 at, const SumTile (&tiles)[TILES], int r,
                                          float divisor) {
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) store(out, at + 8 * n + tile_column() + e, tiles[n].sums[2 * r + e] / divisor);
}

template <int D> __device__ __forceinline__ void attention_mma_forward_tile(const AttentionForward &a) {
    SHARED(bf16_bits, shared);
    constexpr int STRIDE = D + 8;
    const AttentionConfig &c = a.config;
    const BlockTile tile = tile_of_block(c, c.heads, MMA_ROWS * MMA_WARPS);
    const int b = tile.batch, h = tile.head, first = tile.first, count = tile.count;
    const int g = h / (c.heads / c.kv_heads);
    bf16_bits *k = shared, *v = k + MMA_KEYS * STRIDE;
    const bf16_bits *x = static_cast<const bf16_bits *>(a.qkv.data);
    const int64 stride = packed_row(c, 0, 1);
    // Rows `row` and `row + 8` of the tile are those of this lane. Rows beyond the last are computed as that, and not stored.
    const int row = warp() * MMA_ROWS + tile_row();
    LeftTile q[D / 16];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const bf16_bits *own = x + query_at(c, b, first + min(row + 8 * r, count - 1), h) + tile_column();
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            q[step].pairs[r] = load_pair(own + 16 * step);
            q[step].pairs[2 + r] = load_pair(own + 16 * step + 8);
        }
    }
    SumTile context[D / 8] = {};
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    const int last = first + count - 1;
    for (int start = first_key(c, first) / MMA_KEYS * MMA_KEYS; start <= last; start += MMA_KEYS) {
        const int keys = min(MMA_KEYS, c.seq - start);
        __syncthreads();
        copy_rows<D>(x + key_at(c, b, start, g), stride, MMA_KEYS, keys, k);
        copy_rows<D>(x + value_at(c, b, start, g), stride, MMA_KEYS, keys, v);
        __syncthreads();
        SumTile logits[MMA_KEYS / 8] = {};
#pragma unroll
        for (int n = 0; n < MMA_KEYS / 8; ++n)
#pragma unroll
            for (int step = 0; step < D / 16; ++step)
                multiply_add(logits[n], q[step], load_columns_as_right(k + 8 * n * STRIDE + 16 * step, STRIDE));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int t = first + min(row + 8 * r, count - 1), lowest = first_key(c, t);
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < MMA_KEYS / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = start + 8 * n + tile_column() + e;
                    float &logit = logits[n].sums[2 * r + e];
                    logit = key <= t && key >= lowest ? attention_logit(c, logit).value : -INFINITY;
                    most = fmaxf(most, logit);
                }
            const float now = fmaxf(largest[r], row_max(most));
            // A tile may have no key that the query attends to: then there is nothing to shift.
            const float shift = now == -INFINITY ? 0.0f : now;
            const float shrink = expf(largest[r] - shift);
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < MMA_KEYS / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float &p = logits[n].sums[2 * r + e];
                    p = expf(p - shift);
                    sum += p;
                }
            total[r] = total[r] * shrink + row_sum(sum);
            largest[r] = now;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                context[n].sums[2 * r] *= shrink;
                context[n].sums[2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int j = 0; j < MMA_KEYS / 16; ++j) {
            const LeftTile p = narrow_tiles(logits[2 * j], logits[2 * j + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; ++n)
                multiply_add(context[n], p, load_rows_as_right(v + 16 * j * STRIDE + 8 * n, STRIDE));
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r, t = first + at;
        if (at >= count) continue;
        store_row(a.context, context_at(c, b, t, h), context, r, total[r]);
        if (tile_column() == 0) a.lse[(int64(b) * c.heads + h) * c.seq + t] = largest[r] + logf(total[r]);
    }
}

KERNEL(attention_mma_forward_64, AttentionForward, attention_mma_forward_tile<64>)
KERNEL(attention_mma_forward_128, AttentionForward, attention_mma_forward_tile<128>)
