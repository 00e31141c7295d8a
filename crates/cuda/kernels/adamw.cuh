// Squared norms of gradients, and AdamW with clipping by the global norm.
#pragma once
#include "common.cuh"

struct SquaredNorm {
    const float *x;
    // A sum for each block.
    double *partials;
    int64 count;
};

__device__ __forceinline__ void squared_norm_of(const SquaredNorm &a) {
    SHARED(double, scratch);
    double sum = 0.0;
    for (int64 i = thread(); i < a.count; i += threads()) sum += double(a.x[i]) * double(a.x[i]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
}

KERNEL(squared_norm, SquaredNorm, squared_norm_of)

// y[i] = sum of partials[i][j] over j, in this order, or its square root.
struct SumDoubles {
    const double *partials;
    double *y;
    int64 count;
    int parts;
    int is_root;
};

__device__ __forceinline__ void sum_double_elements(const SumDoubles &a) {
    for (int64 i = thread(); i < a.count; i += threads()) {
        double total = 0.0;
        for (int part = 0; part < a.parts; ++part) total += a.partials[i * a.parts + part];
        a.y[i] = a.is_root ? sqrt(total) : total;
    }
}

KERNEL(sum_doubles, SumDoubles, sum_double_elements)

// What all parameters of a step share.
struct StepCoefficients {
    float lr;
    float clip;
    float correction1;
    float root_of_correction2;
    // 0: gradients or losses are not finite, and nothing is changed.
    int is_finite;
};

struct AdamWCoefficients {
    const RunArguments *run;
    const float *losses;
    const double *squares;
    StepCoefficients *coefficients;
    int loss_count;
    int square_count;
    double beta1;
    double beta2;
    // 0: gradients are not clipped.
    double max_norm;
};

// Runs in one thread.
__device__ __forceinline__ void adamw_coefficients_of(const AdamWCoefficients &a) {
    if (thread() != 0) return;
    double total = 0.0;
    for (int i = 0; i < a.square_count; ++i) total += a.squares[i];
    const double norm = sqrt(total);
    bool is_finite = isfinite(norm);
    for (int i = 0; i < a.loss_count; ++i) is_finite = is_finite && isfinite(a.losses[i]);
    const double clip = a.max_norm == 0.0 ? 1.0 : fmin(a.max_norm / (norm + 1e-6), 1.0);
    const double step = double(a.run->step);
    a.coefficients->lr = float(a.run->lr);
    a.coefficients->clip = float(clip);
    a.coefficients->correction1 = float(1.0 - pow(a.beta1, step));
    a.coefficients->root_of_correction2 = float(sqrt(1.0 - pow(a.beta2, step)));
    a.coefficients->is_finite = is_finite;
}

KERNEL(adamw_coefficients, AdamWCoefficients, adamw_coefficients_of)

// Stores the sums over a block of squares of updates, and `stride` further those of values before.
__device__ __forceinline__ void store_update_squares(double updates, double values, double *partials, int64 stride,
                                                     double *scratch) {
    updates = block_sum(updates, scratch);
    values = block_sum(values, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = updates;
        partials[stride + blockIdx.x] = values;
    }
}

struct AdamWStep {
    const StepCoefficients *coefficients;
    const float *g;
    float *p;
    float *m;
    float *v;
    // The values, rounded; null for no copy.
    bf16_bits *copy;
    // (2, blocks): sums of squares of updates, and of values before.
    double *partials;
    int64 count;
    double beta1;
    double beta2;
    float eps;
    float weight_decay;
};

// p -= lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)
__device__ __forceinline__ void adamw_step_of(const AdamWStep &a) {
    SHARED(double, scratch);
    const StepCoefficients c = *a.coefficients;
    const float beta1 = float(a.beta1), beta2 = float(a.beta2);
    // Not from the rounded decay rates: 1 - 0.999 would be off by one part in 10^5.
    const float rest1 = float(1.0 - a.beta1), rest2 = float(1.0 - a.beta2);
    double updates = 0.0, values = 0.0;
    if (c.is_finite) {
        for (int64 i = thread(); i < a.count; i += threads()) {
            const float g = c.clip * a.g[i];
            const float p = a.p[i];
            const float m = beta1 * a.m[i] + rest1 * g;
            const float v = beta2 * a.v[i] + rest2 * g * g;
            const float direction = m / c.correction1 / (sqrtf(v) / c.root_of_correction2 + a.eps);
            const float update = -c.lr * (direction + a.weight_decay * p);
            const float next = p + update;
            a.p[i] = next;
            if (a.copy) a.copy[i] = narrow(next);
            a.m[i] = m;
            a.v[i] = v;
            updates += double(update) * double(update);
            values += double(p) * double(p);
        }
    }
    store_update_squares(updates, values, a.partials, gridDim.x, scratch);
}

KERNEL(adamw_step, AdamWStep, adamw_step_of)
