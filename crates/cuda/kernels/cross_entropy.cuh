// Cross-entropy of rows of logits, and its gradient. A block per row.
#pragma once
#include "common.cuh"

struct CrossEntropyRows {
    // (rows, vocab): x w, before scale and cap.
    const float *logits;
    // -1: the row is ignored.
    const int *targets;
    // Gradient of `logits`, which it may overwrite; null: not computed.
    FloatsMut dlogits;
    // Gradient of the objective, one element; null: 1.
    const float *upstream;
    // (rows, 2): cross-entropy, and square of the log-sum-exp; null: not stored.
    float *losses;
    int64 rows;
    int vocab;
    float scale;
    // 0: none.
    float softcap;
    float z_loss;
    float divisor;
};

// A logit, and its derivative with respect to x w.
struct Logit {
    float value;
    float derivative;
};

__device__ __forceinline__ Logit logit_of(const CrossEntropyRows &a, float u) {
    const float z = a.scale * u;
    if (a.softcap == 0.0f) return {z, a.scale};
    const float t = tanhf(z / a.softcap);
    return {a.softcap * t, a.scale * (1.0f - t * t)};
}

__device__ __forceinline__ void cross_entropy_row(const CrossEntropyRows &a) {
    SHARED(float, scratch);
    for (int64 row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const float *u = a.logits + row * a.vocab;
        const int target = a.targets[row];
        const bool is_ignored = target < 0;
        float largest = -INFINITY;
        for (int i = int(threadIdx.x); i < a.vocab; i += int(blockDim.x)) largest = fmaxf(largest, logit_of(a, u[i]).value);
        largest = block_max(largest, scratch);
        float sum = 0.0f;
        for (int i = int(threadIdx.x); i < a.vocab; i += int(blockDim.x)) sum += expf(logit_of(a, u[i]).value - largest);
        const float lse = largest + logf(block_sum(sum, scratch));
        if (threadIdx.x == 0 && a.losses != nullptr) {
            a.losses[2 * row] = is_ignored ? 0.0f : lse - logit_of(a, u[target]).value;
            a.losses[2 * row + 1] = is_ignored ? 0.0f : lse * lse;
        }
        if (a.dlogits.data == nullptr) continue;
        // The target's logit is read above before it may be overwritten.
        __syncthreads();
        const float factor = (a.upstream == nullptr ? 1.0f : a.upstream[0]) / a.divisor;
        const float weight = 1.0f + 2.0f * a.z_loss * lse;
        for (int i = int(threadIdx.x); i < a.vocab; i += int(blockDim.x)) {
            const Logit logit = logit_of(a, u[i]);
            const float p = expf(logit.value - lse) * weight - (i == target ? 1.0f : 0.0f);
            store(a.dlogits, row * a.vocab + i, is_ignored ? 0.0f : p * factor * logit.derivative);
        }
    }
}

KERNEL(cross_entropy_rows, CrossEntropyRows, cross_entropy_row)

// Sums the losses of all rows, in one block.
struct CrossEntropyTotal {
    const float *losses;
    float *objective;
    float *cross_entropy;
    int64 rows;
    float z_loss;
    float divisor;
};

__device__ __forceinline__ void cross_entropy_total_of(const CrossEntropyTotal &a) {
    SHARED(double, scratch);
    double cross_entropy = 0.0, z = 0.0;
    for (int64 row = threadIdx.x; row < a.rows; row += blockDim.x) {
        cross_entropy += double(a.losses[2 * row]);
        z += double(a.losses[2 * row + 1]);
    }
    cross_entropy = block_sum(cross_entropy, scratch) / double(a.divisor);
    z = block_sum(z, scratch) / double(a.divisor);
    if (threadIdx.x == 0) {
        a.objective[0] = float(cross_entropy + double(a.z_loss) * z);
        a.cross_entropy[0] = float(cross_entropy);
    }
}

KERNEL(cross_entropy_total, CrossEntropyTotal, cross_entropy_total_of)
