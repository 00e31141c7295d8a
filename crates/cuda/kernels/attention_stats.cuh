// Statistics of attention logits, which attention itself never stores. For inspection: plain loops, a warp per query.
#pragma once
#include "attention.cuh"
#include "tensor_stats.cuh"

struct AttentionQueryStats {
    Floats qkv;
    // (batch, heads, seq): largest scale q k; null: not computed.
    float *largest_dots;
    // (batch, heads, seq): largest logit after the soft cap, and entropy of the weights; NaN if a logit is not finite. Null:
    // not computed.
    float *largest_logits;
    float *entropies;
    AttentionConfig config;
};

__device__ __forceinline__ float warp_max_or_nan(float x) {
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, mask);
        x = x != x || x > other ? x : other;
    }
    return x;
}

__device__ __forceinline__ void attention_stats_of_queries(const AttentionQueryStats &a) {
    const AttentionConfig &c = a.config;
    const int64 queries = int64(c.batch) * c.heads * c.seq;
    for (int64 at = int64(blockIdx.x) * warps() + warp(); at < queries; at += int64(gridDim.x) * warps()) {
        const int t = int(at % c.seq), h = int(at / c.seq % c.heads), b = int(at / c.seq / c.heads);
        const int64 q = query_at(c, b, t, h);
        const auto dot = [&](int key) {
            const int64 k = key_at(c, b, key, h / (c.heads / c.kv_heads));
            float sum = 0.0f;
            for (int i = 0; i < c.head_dim; ++i) sum += load(a.qkv, q + i) * load(a.qkv, k + i);
            return sum;
        };
        float largest_dot = -INFINITY, largest = -INFINITY;
        bool is_finite = true;
        for (int key = first_key(c, t) + lane(); key <= t; key += WARP_SIZE) {
            const float u = dot(key), scaled = c.scale * u, logit = attention_logit(c, u).value;
            largest_dot = largest_dot != largest_dot || largest_dot > scaled ? largest_dot : scaled;
            largest = fmaxf(largest, logit);
            is_finite = is_finite && isfinite(logit);
        }
        largest_dot = warp_max_or_nan(largest_dot);
        if (a.largest_dots != nullptr && lane() == 0) a.largest_dots[at] = largest_dot;
        if (a.largest_logits == nullptr) continue;
        largest = warp_max_or_nan(is_finite ? largest : NOT_A_NUMBER);
        float total = 0.0f, weighted = 0.0f;
        for (int key = first_key(c, t) + lane(); key <= t; key += WARP_SIZE) {
            const float below = attention_logit(c, dot(key)).value - largest;
            total += expf(below);
            weighted += expf(below) * below;
        }
        total = warp_sum(total);
        weighted = warp_sum(weighted);
        if (lane() == 0) {
            a.largest_logits[at] = largest;
            a.entropies[at] = logf(total) - weighted / total;
        }
    }
}

KERNEL(attention_query_stats, AttentionQueryStats, attention_stats_of_queries)

struct AttentionStatsTotal {
    const float *largest_logits;
    const float *entropies;
    // Largest logit, and mean entropy.
    double *found;
    int64 queries;
};

// Runs in one block.
__device__ __forceinline__ void attention_stats_total_of(const AttentionStatsTotal &a) {
    SHARED(double, scratch);
    double largest = -INFINITY, entropies = 0.0;
    for (int64 i = threadIdx.x; i < a.queries; i += blockDim.x) {
        largest = larger_or_nan(double(a.largest_logits[i]), largest);
        entropies += double(a.entropies[i]);
    }
    largest = block_max_or_nan(largest, scratch);
    entropies = block_sum(entropies, scratch);
    if (threadIdx.x == 0) {
        a.found[0] = largest;
        a.found[1] = entropies / double(a.queries);
    }
}

KERNEL(attention_stats_total, AttentionStatsTotal, attention_stats_total_of)

struct MaxLogitsOfHeads {
    // (batch, heads, seq)
    const float *largest_dots;
    float *maxima;
    int batch;
    int heads;
    int seq;
};

// A block per head.
__device__ __forceinline__ void max_logits_of_head(const MaxLogitsOfHeads &a) {
    SHARED(double, scratch);
    for (int h = int(blockIdx.x); h < a.heads; h += int(gridDim.x)) {
        double largest = -INFINITY;
        for (int64 i = threadIdx.x; i < int64(a.batch) * a.seq; i += blockDim.x) {
            const int64 b = i / a.seq, t = i % a.seq;
            largest = larger_or_nan(double(a.largest_dots[(b * a.heads + h) * a.seq + t]), largest);
        }
        largest = block_max_or_nan(largest, scratch);
        if (threadIdx.x == 0) a.maxima[h] = float(largest);
    }
}

KERNEL(max_logits_of_heads, MaxLogitsOfHeads, max_logits_of_head)
