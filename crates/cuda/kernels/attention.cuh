// Causal grouped-query attention in single precision, without the matrix of logits: an online softmax over tiles of keys,
// and logits that the backward pass recomputes.
//
// A lane takes a key of a tile (or a query, in the gradients of keys and values) while logits are computed, and some
// channels while sums over the tile are. So every sum is that of one thread, in a fixed order.
#pragma once
#include "common.cuh"

struct AttentionConfig {
    int batch;
    int seq;
    int heads;
    int kv_heads;
    int head_dim;
    int value_dim;
    // Keys that a query attends to, the last of them its own; 0: all up to its own.
    int window;
    float scale;
    // 0: none.
    float softcap;
};

// Keys, or queries, of a tile: one for each lane.
constexpr int TILE = WARP_SIZE;
// Queries, or keys, of a warp.
constexpr int ROWS = 4;
// Channels of a lane.
constexpr int CHANNELS = 256 / WARP_SIZE;

// A row of packed [q heads | k heads | v heads], and offsets in it.
__device__ __forceinline__ int64 packed_row(const AttentionConfig &c, int b, int t) {
    return (int64(b) * c.seq + t) * ((c.heads + c.kv_heads) * c.head_dim + c.kv_heads * c.value_dim);
}
__device__ __forceinline__ int64 query_at(const AttentionConfig &c, int b, int t, int h) {
    return packed_row(c, b, t) + h * c.head_dim;
}
__device__ __forceinline__ int64 key_at(const AttentionConfig &c, int b, int t, int g) {
    return packed_row(c, b, t) + (c.heads + g) * c.head_dim;
}
__device__ __forceinline__ int64 value_at(const AttentionConfig &c, int b, int t, int g) {
    return packed_row(c, b, t) + (c.heads + c.kv_heads) * c.head_dim + g * c.value_dim;
}
__device__ __forceinline__ int64 context_at(const AttentionConfig &c, int b, int t, int h) {
    return ((int64(b) * c.seq + t) * c.heads + h) * c.value_dim;
}

__device__ __forceinline__ int first_key(const AttentionConfig &c, int t) {
    return c.window > 0 && t + 1 > c.window ? t + 1 - c.window : 0;
}

// A logit of the dot product u, and its derivative.
struct AttentionLogit {
    float value;
    float derivative;
};

__device__ __forceinline__ AttentionLogit attention_logit(const AttentionConfig &c, float dot) {
    const float u = c.scale * dot;
    if (c.softcap == 0.0f) return {u, c.scale};
    const float t = tanhf(u / c.softcap);
    return {c.softcap * t, c.scale * (1.0f - t * t)};
}

// Copies `count` rows of `width` channels to shared memory, `stride` apart; `at(i)` is the offset of row i.
template <class At>
__device__ __forceinline__ void load_rows(const Floats &x, float *out, int count, int width, int stride, At at) {
    for (int i = int(threadIdx.x); i < count * width; i += int(blockDim.x))
        out[i / width * stride + i % width] = load(x, at(i / width) + i % width);
}

__device__ __forceinline__ float dot_product(const float *x, const float *y, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; ++i) sum += x[i] * y[i];
    return sum;
}

// Adds the rows of a tile in shared memory, each with the weight that its lane holds, to the channels of this lane.
__device__ __forceinline__ void add_weighted_rows(float (&sums)[CHANNELS], float weight, const float *rows, int width,
                                                  int stride) {
    for (int j = 0; j < TILE; ++j) {
        const float weight_j = __shfl_sync(ALL_LANES, weight, j);
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            const int channel = lane() + WARP_SIZE * i;
            if (channel < width) sums[i] += weight_j * rows[j * stride + channel];
        }
    }
}

// Positions first .. first + count of a head.
struct BlockTile {
    int batch;
    int head;
    int first;
    int count;
};

// Returns the positions of this block, of a grid of tiles of `size` positions for each of `heads` heads.
__device__ __forceinline__ BlockTile tile_of_block(const AttentionConfig &c, int heads, int size) {
    const int tiles = (c.seq + size - 1) / size, head = int(blockIdx.x) / tiles;
    const int first = int(blockIdx.x) % tiles * size;
    return {head / heads, head % heads, first, min(size, c.seq - first)};
}

struct AttentionForward {
    Floats qkv;
    FloatsMut context;
    // (batch, heads, seq): log-sum-exp of the logits of each query.
    float *lse;
    AttentionConfig config;
};

// A block computes ROWS queries for each of its warps, of one head.
__device__ __forceinline__ void attention_forward_tile(const AttentionForward &a) {
    SHARED(float, shared);
    const AttentionConfig &c = a.config;
    const int queries = ROWS * warps();
    const BlockTile tile = tile_of_block(c, c.heads, queries);
    const int b = tile.batch, h = tile.head, first = tile.first, count = tile.count;
    const int g = h / (c.heads / c.kv_heads);
    // A stride that is odd for even widths: the lanes read different banks.
    const int stride = c.head_dim + 1;
    float *q = shared, *k = q + queries * c.head_dim, *v = k + TILE * stride;
    load_rows(a.qkv, q, count, c.head_dim, c.head_dim, [&](int i) { return query_at(c, b, first + i, h); });
    float context[ROWS][CHANNELS] = {}, largest[ROWS], total[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        largest[r] = -INFINITY;
        total[r] = 0.0f;
    }
    const int last = first + count - 1;
    for (int start = first_key(c, first) / TILE * TILE; start <= last; start += TILE) {
        const int keys = min(TILE, c.seq - start);
        __syncthreads();
        load_rows(a.qkv, k, keys, c.head_dim, stride, [&](int i) { return key_at(c, b, start + i, g); });
        // Weights of keys that do not exist are zero, but their values must be finite.
        load_rows(a.qkv, v, TILE, c.value_dim, c.value_dim, [&](int i) { return value_at(c, b, min(start + i, c.seq - 1), g); });
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = warp() * ROWS + r, t = first + row, key = start + lane();
            // The same for all lanes.
            if (row >= count || start > t || start + TILE <= first_key(c, t)) continue;
            const bool is_visible = key <= t && key >= first_key(c, t);
            float logit = -INFINITY;
            if (is_visible) logit = attention_logit(c, dot_product(q + row * c.head_dim, k + lane() * stride, c.head_dim)).value;
            const float now = fmaxf(largest[r], warp_max(logit));
            const float shrink = expf(largest[r] - now);
            const float p = is_visible ? expf(logit - now) : 0.0f;
            largest[r] = now;
            total[r] = total[r] * shrink + warp_sum(p);
#pragma unroll
            for (int i = 0; i < CHANNELS; ++i) context[r][i] *= shrink;
            add_weighted_rows(context[r], p, v, c.value_dim, c.value_dim);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp() * ROWS + r, t = first + row;
        if (row >= count) continue;
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            const int channel = lane() + WARP_SIZE * i;
            if (channel < c.value_dim) store(a.context, context_at(c, b, t, h) + channel, context[r][i] / total[r]);
        }
        if (lane() == 0) a.lse[(int64(b) * c.heads + h) * c.seq + t] = largest[r] + logf(total[r]);
    }
}

KERNEL(attention_forward, AttentionForward, attention_forward_tile)

struct AttentionBackward {
    Floats qkv;
    Floats context;
    Floats dcontext;
    const float *lse;
    // (batch, heads, seq): dot product of context and its gradient, written by the gradient of the queries.
    float *delta;
    FloatsMut dqkv;
    AttentionConfig config;
};

// Gradients of the queries: a block computes ROWS for each of its warps, of one head.
__device__ __forceinline__ void attention_backward_query_tile(const AttentionBackward &a) {
    SHARED(float, shared);
    const AttentionConfig &c = a.config;
    const int queries = ROWS * warps();
    const BlockTile tile = tile_of_block(c, c.heads, queries);
    const int b = tile.batch, h = tile.head, first = tile.first, count = tile.count;
    const int g = h / (c.heads / c.kv_heads);
    const int stride = c.head_dim + 1, value_stride = c.value_dim + 1;
    float *q = shared, *dctx = q + queries * c.head_dim, *k = dctx + queries * c.value_dim, *v = k + TILE * stride;
    load_rows(a.qkv, q, count, c.head_dim, c.head_dim, [&](int i) { return query_at(c, b, first + i, h); });
    load_rows(a.dcontext, dctx, count, c.value_dim, c.value_dim, [&](int i) { return context_at(c, b, first + i, h); });
    __syncthreads();
    float dq[ROWS][CHANNELS] = {}, delta[ROWS], lse[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp() * ROWS + r, t = first + row;
        if (row >= count) continue;
        float sum = 0.0f;
        for (int i = lane(); i < c.value_dim; i += WARP_SIZE)
            sum += load(a.context, context_at(c, b, t, h) + i) * dctx[row * c.value_dim + i];
        delta[r] = warp_sum(sum);
        const int64 at = (int64(b) * c.heads + h) * c.seq + t;
        lse[r] = a.lse[at];
        if (lane() == 0) a.delta[at] = delta[r];
    }
    const int last = first + count - 1;
    for (int start = first_key(c, first) / TILE * TILE; start <= last; start += TILE) {
        __syncthreads();
        // Gradients of keys that do not exist are zero, but the keys must be finite.
        load_rows(a.qkv, k, TILE, c.head_dim, stride, [&](int i) { return key_at(c, b, min(start + i, c.seq - 1), g); });
        load_rows(a.qkv, v, TILE, c.value_dim, value_stride, [&](int i) { return value_at(c, b, min(start + i, c.seq - 1), g); });
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = warp() * ROWS + r, t = first + row, key = start + lane();
            if (row >= count || start > t || start + TILE <= first_key(c, t)) continue;
            float du = 0.0f;
            if (key <= t && key >= first_key(c, t)) {
                const AttentionLogit logit = attention_logit(c, dot_product(q + row * c.head_dim, k + lane() * stride, c.head_dim));
                const float dp = dot_product(dctx + row * c.value_dim, v + lane() * value_stride, c.value_dim);
                du = expf(logit.value - lse[r]) * (dp - delta[r]) * logit.derivative;
            }
            add_weighted_rows(dq[r], du, k, c.head_dim, stride);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp() * ROWS + r;
        if (row >= count) continue;
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            const int channel = lane() + WARP_SIZE * i;
            if (channel < c.head_dim) store(a.dqkv, query_at(c, b, first + row, h) + channel, dq[r][i]);
        }
    }
}

KERNEL(attention_backward_queries, AttentionBackward, attention_backward_query_tile)

// Gradients of keys and values, after those of the queries: a block computes ROWS for each of its warps, of one key/value
// head, and goes through the queries of all heads that share it.
__device__ __forceinline__ void attention_backward_key_tile(const AttentionBackward &a) {
    SHARED(float, shared);
    const AttentionConfig &c = a.config;
    const int keys = ROWS * warps();
    const BlockTile tile = tile_of_block(c, c.kv_heads, keys);
    const int b = tile.batch, g = tile.head, first = tile.first, count = tile.count;
    const int stride = c.head_dim + 1, value_stride = c.value_dim + 1;
    float *k = shared, *v = k + keys * c.head_dim, *q = v + keys * c.value_dim, *dctx = q + TILE * stride;
    load_rows(a.qkv, k, count, c.head_dim, c.head_dim, [&](int i) { return key_at(c, b, first + i, g); });
    load_rows(a.qkv, v, count, c.value_dim, c.value_dim, [&](int i) { return value_at(c, b, first + i, g); });
    float dk[ROWS][CHANNELS] = {}, dv[ROWS][CHANNELS] = {};
    const int end = c.window > 0 ? min(c.seq, first + count - 1 + c.window) : c.seq;
    const int shared_by = c.heads / c.kv_heads;
    for (int h = g * shared_by; h < (g + 1) * shared_by; ++h) {
        for (int start = first / TILE * TILE; start < end; start += TILE) {
            __syncthreads();
            load_rows(a.qkv, q, TILE, c.head_dim, stride, [&](int i) { return query_at(c, b, min(start + i, c.seq - 1), h); });
            load_rows(a.dcontext, dctx, TILE, c.value_dim, value_stride, [&](int i) { return context_at(c, b, min(start + i, c.seq - 1), h); });
            __syncthreads();
            const int t = start + lane();
            const int64 at = (int64(b) * c.heads + h) * c.seq + min(t, c.seq - 1);
            const float lse = a.lse[at], delta = a.delta[at];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int row = warp() * ROWS + r, key = first + row;
                if (row >= count) continue;
                float du = 0.0f, p = 0.0f;
                if (t < c.seq && key <= t && key >= first_key(c, t)) {
                    const AttentionLogit logit = attention_logit(c, dot_product(k + row * c.head_dim, q + lane() * stride, c.head_dim));
                    p = expf(logit.value - lse);
                    const float dp = dot_product(v + row * c.value_dim, dctx + lane() * value_stride, c.value_dim);
                    du = p * (dp - delta) * logit.derivative;
                }
                add_weighted_rows(dk[r], du, q, c.head_dim, stride);
                add_weighted_rows(dv[r], p, dctx, c.value_dim, value_stride);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp() * ROWS + r;
        if (row >= count) continue;
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            const int channel = lane() + WARP_SIZE * i;
            if (channel < c.head_dim) store(a.dqkv, key_at(c, b, first + row, g) + channel, dk[r][i]);
            if (channel < c.value_dim) store(a.dqkv, value_at(c, b, first + row, g) + channel, dv[r][i]);
        }
    }
}

KERNEL(attention_backward_keys, AttentionBackward, attention_backward_key_tile)
