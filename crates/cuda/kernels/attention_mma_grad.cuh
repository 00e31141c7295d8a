// Gradients of attention on tensor cores, for heads of 64 or 128 channels, as in FlashAttention-2 (Dao, arXiv 2307.08691),
// but with a kernel for the queries and one for keys and values, so that every sum has one thread and a fixed order.
#pragma once
#include "attention_mma.cuh"

// Keys of a tile in the gradients of queries, and queries in those of keys and values.
constexpr int MMA_GRAD_TILE = 32;

// Adds the dot products of the 16 rows of this warp, of D channels in shared memory, with the rows of a tile.
template <int D, int TILES>
__device__ __forceinline__ void add_row_products(SumTile (&sums)[TILES], const bf16_bits *own, const bf16_bits *rows) {
    constexpr int STRIDE = D + 8;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        const LeftTile left = load_left(own + warp() * MMA_ROWS * STRIDE + 16 * step, STRIDE);
#pragma unroll
        for (int n = 0; n < TILES; ++n)
            multiply_add(sums[n], left, load_columns_as_right(rows + 8 * n * STRIDE + 16 * step, STRIDE));
    }
}

// A block computes 16 queries for each of its warps, of one head.
template <int D> __device__ __forceinline__ void attention_mma_query_tile(const AttentionBackward &a) {
    SHARED(bf16_bits, shared);
    constexpr int STRIDE = D + 8, QUERIES = MMA_ROWS * MMA_WARPS, TILES = MMA_GRAD_TILE / 8;
    const AttentionConfig &c = a.config;
    const BlockTile tile = tile_of_block(c, c.heads, QUERIES);
    const int b = tile.batch, h = tile.head, first = tile.first, count = tile.count;
    const int g = h / (c.heads / c.kv_heads);
    bf16_bits *q = shared, *dctx = q + QUERIES * STRIDE, *k = dctx + QUERIES * STRIDE, *v = k + MMA_GRAD_TILE * STRIDE;
    const bf16_bits *x = static_cast<const bf16_bits *>(a.qkv.data);
    const bf16_bits *dcontext = static_cast<const bf16_bits *>(a.dcontext.data);
    const int64 stride = packed_row(c, 0, 1), context_stride = context_at(c, 0, 1, 0);
    copy_rows<D>(x + query_at(c, b, first, h), stride, QUERIES, count, q);
    copy_rows<D>(dcontext + context_at(c, b, first, h), context_stride, QUERIES, count, dctx);
    __syncthreads();
    const int row = warp() * MMA_ROWS + tile_row();
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int own = row + 8 * r, t = first + min(own, count - 1);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int channel = 8 * n + tile_column() + e;
                sum += load(a.context, context_at(c, b, t, h) + channel) * widen(dctx[min(own, count - 1) * STRIDE + channel]);
            }
        delta[r] = row_sum(sum);
        const int64 at = (int64(b) * c.heads + h) * c.seq + t;
        lse[r] = a.lse[at];
        if (tile_column() == 0 && own < count) a.delta[at] = delta[r];
    }
    SumTile dq[D / 8] = {};
    const int last = first + count - 1;
    for (int start = first_key(c, first) / MMA_GRAD_TILE * MMA_GRAD_TILE; start <= last; start += MMA_GRAD_TILE) {
        const int keys = min(MMA_GRAD_TILE, c.seq - start);
        __syncthreads();
        copy_rows<D>(x + key_at(c, b, start, g), stride, MMA_GRAD_TILE, keys, k);
        copy_rows<D>(x + value_at(c, b, start, g), stride, MMA_GRAD_TILE, keys, v);
        __syncthreads();
        SumTile dots[TILES] = {}, dp[TILES] = {};
        add_row_products<D>(dots, q, k);
        add_row_products<D>(dp, dctx, v);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int t = first + row + 8 * r, lowest = first_key(c, t);
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = start + 8 * n + tile_column() + e;
                    float &dot = dots[n].sums[2 * r + e];
                    float du = 0.0f;
                    if (row + 8 * r < count && key <= t && key >= lowest) {
                        const AttentionLogit logit = attention_logit(c, dot);
                        du = expf(logit.value - lse[r]) * (dp[n].sums[2 * r + e] - delta[r]) * logit.derivative;
                    }
                    dot = du;
                }
        }
#pragma unroll
        for (int j = 0; j < TILES / 2; ++j) {
            const LeftTile du = narrow_tiles(dots[2 * j], dots[2 * j + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; ++n)
                multiply_add(dq[n], du, load_rows_as_right(k + 16 * j * STRIDE + 8 * n, STRIDE));
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= count) continue;
        store_row(a.dqkv, query_at(c, b, first + row + 8 * r, h), dq, r, 1.0f);
    }
}

KERNEL(attention_mma_queries_64, AttentionBackward, attention_mma_query_tile<64>)
KERNEL(attention_mma_queries_128, AttentionBackward, attention_mma_query_tile<128>)

// After the gradients of the queries: a block computes 16 keys and values for each of its warps, of one key/value head,
// and goes through the queries of all heads that share it.
template <int D> __device__ __forceinline__ void attention_mma_key_tile(const AttentionBackward &a) {
    SHARED(bf16_bits, shared);
    constexpr int STRIDE = D + 8, KEYS = MMA_ROWS * MMA_WARPS, TILES = MMA_GRAD_TILE / 8;
    const AttentionConfig &c = a.config;
    const BlockTile tile = tile_of_block(c, c.kv_heads, KEYS);
    const int b = tile.batch, g = tile.head, first = tile.first, count = tile.count;
    bf16_bits *k = shared, *v = k + KEYS * STRIDE, *q = v + KEYS * STRIDE, *dctx = q + MMA_GRAD_TILE * STRIDE;
    const bf16_bits *x = static_cast<const bf16_bits *>(a.qkv.data);
    const bf16_bits *dcontext = static_cast<const bf16_bits *>(a.dcontext.data);
    const int64 stride = packed_row(c, 0, 1), context_stride = context_at(c, 0, 1, 0);
    copy_rows<D>(x + key_at(c, b, first, g), stride, KEYS, count, k);
    copy_rows<D>(x + value_at(c, b, first, g), stride, KEYS, count, v);
    const int row = warp() * MMA_ROWS + tile_row();
    SumTile dk[D / 8] = {}, dv[D / 8] = {};
    const int end = c.window > 0 ? min(c.seq, first + count - 1 + c.window) : c.seq;
    const int shared_by = c.heads / c.kv_heads;
    for (int h = g * shared_by; h < (g + 1) * shared_by; ++h) {
        for (int start = first / MMA_GRAD_TILE * MMA_GRAD_TILE; start < end; start += MMA_GRAD_TILE) {
            const int queries = min(MMA_GRAD_TILE, c.seq - start);
            __syncthreads();
            copy_rows<D>(x + query_at(c, b, start, h), stride, MMA_GRAD_TILE, queries, q);
            copy_rows<D>(dcontext + context_at(c, b, start, h), context_stride, MMA_GRAD_TILE, queries, dctx);
            __syncthreads();
            SumTile dots[TILES] = {}, dp[TILES] = {};
            add_row_products<D>(dots, k, q);
            add_row_products<D>(dp, v, dctx);
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int t = start + 8 * n + tile_column() + e;
                    const int64 at = (int64(b) * c.heads + h) * c.seq + min(t, c.seq - 1);
                    const float lse = a.lse[at], delta = a.delta[at];
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const int key = first + row + 8 * r;
                        float &dot = dots[n].sums[2 * r + e], &weight = dp[n].sums[2 * r + e];
                        float du = 0.0f, p = 0.0f;
                        if (row + 8 * r < count && t < c.seq && key <= t && key >= first_key(c, t)) {
                            const AttentionLogit logit = attention_logit(c, dot);
                            p = expf(logit.value - lse);
                            du = p * (weight - delta) * logit.derivative;
                        }
                        dot = du;
                        weight = p;
                    }
                }
#pragma unroll
            for (int j = 0; j < TILES / 2; ++j) {
                const LeftTile du = narrow_tiles(dots[2 * j], dots[2 * j + 1]);
                const LeftTile p = narrow_tiles(dp[2 * j], dp[2 * j + 1]);
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    multiply_add(dk[n], du, load_rows_as_right(q + 16 * j * STRIDE + 8 * n, STRIDE));
                    multiply_add(dv[n], p, load_rows_as_right(dctx + 16 * j * STRIDE + 8 * n, STRIDE));
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= count) continue;
        const int t = first + row + 8 * r;
        store_row(a.dqkv, key_at(c, b, t, g), dk, r, 1.0f);
        store_row(a.dqkv, value_at(c, b, t, g), dv, r, 1.0f);
    }
}

KERNEL(attention_mma_keys_64, AttentionBackward, attention_mma_key_tile<64>)
KERNEL(attention_mma_keys_128, AttentionBackward, attention_mma_key_tile<128>)
