// Biases, factors and columns of rows, and their gradients; pointwise functions.
#pragma once
#include "common.cuh"

// Element i belongs to factor (i / repeat) % count: columns of a row with a repeat of 1, rows with a repeat of their width.
struct Factors {
    const float *values;
    int count;
    int repeat;
};

__device__ __forceinline__ float factor_at(const Factors &f, int64 i) { return f.values[i / f.repeat % f.count]; }

struct ApplyFactors {
    const float *x;
    float *y;
    Factors factors;
    int64 count;
    // 1: the factors are added.
    int is_bias;
};

__device__ __forceinline__ void apply_factors_to_elements(const ApplyFactors &a) {
    for (int64 i = thread(); i < a.count; i += threads()) {
        const float factor = factor_at(a.factors, i);
        a.y[i] = a.is_bias ? a.x[i] + factor : a.x[i] * factor;
    }
}

KERNEL(apply_factors, ApplyFactors, apply_factors_to_elements)

// Gradients of factors: sums of the products of x and y, or of x if y is null, over the elements of each factor.
struct FactorGradients {
    const float *x;
    const float *y;
    // (parts, factors)
    float *partials;
    int64 count;
    int factors;
    int repeat;
    int parts;
};

__device__ __forceinline__ float product_at(const FactorGradients &a, int64 i) {
    return a.y == nullptr ? a.x[i] : a.x[i] * a.y[i];
}

// Elements of a factor: `rounds` times `repeat` consecutive ones. Each part has equally many rounds.
__device__ __forceinline__ int64 rounds_per_part(const FactorGradients &a) {
    const int64 rounds = a.count / (int64(a.factors) * a.repeat);
    return (rounds + a.parts - 1) / a.parts;
}

// A thread per factor and part, for factors of few consecutive elements: neighbouring threads read neighbouring elements.
__device__ __forceinline__ void factor_gradients_of_threads(const FactorGradients &a) {
    const int64 per_part = rounds_per_part(a), step = int64(a.factors) * a.repeat;
    for (int64 at = thread(); at < int64(a.parts) * a.factors; at += threads()) {
        const int64 part = at / a.factors, factor = at % a.factors;
        const int64 end = min((part + 1) * per_part * step, a.count);
        float sum = 0.0f;
        for (int64 first = part * per_part * step + factor * a.repeat; first < end; first += step)
            for (int i = 0; i < a.repeat; ++i) sum += product_at(a, first + i);
        a.partials[at] = sum;
    }
}

KERNEL(factor_gradients, FactorGradients, factor_gradients_of_threads)

// A warp per factor and part, for factors of many consecutive elements.
__device__ __forceinline__ void factor_gradients_of_warps(const FactorGradients &a) {
    const int64 per_part = rounds_per_part(a), step = int64(a.factors) * a.repeat;
    for (int64 at = int64(blockIdx.x) * warps() + warp(); at < int64(a.parts) * a.factors; at += int64(gridDim.x) * warps()) {
        const int64 part = at / a.factors, factor = at % a.factors;
        const int64 end = min((part + 1) * per_part * step, a.count);
        float sum = 0.0f;
        for (int64 first = part * per_part * step + factor * a.repeat; first < end; first += step)
            for (int i = lane(); i < a.repeat; i += WARP_SIZE) sum += product_at(a, first + i);
        sum = warp_sum(sum);
        if (lane() == 0) a.partials[at] = sum;
    }
}

KERNEL(factor_gradients_long, FactorGradients, factor_gradients_of_warps)

// Copies, or adds, columns of rows.
struct CopyColumns {
    Floats x;
    FloatsMut y;
    int64 rows;
    int width;
    int x_width;
    int x_first;
    int y_width;
    int y_first;
    int accumulate;
};

__device__ __forceinline__ void copy_columns_of_elements(const CopyColumns &a) {
    for (int64 i = thread(); i < a.rows * a.width; i += threads()) {
        const int64 row = i / a.width, column = i % a.width;
        const int64 to = row * a.y_width + a.y_first + column;
        const float x = load(a.x, row * a.x_width + a.x_first + column);
        store(a.y, to, a.accumulate ? load(a.y, to) + x : x);
    }
}

KERNEL(copy_columns, CopyColumns, copy_columns_of_elements)

enum Pointwise { CLAMP, CLAMP_GRADIENT, SOFTCAP, SOFTCAP_GRADIENT, RECIPROCAL, RECIPROCAL_GRADIENT };

// y = f(x), or in place y = f(x, y) for gradients.
struct PointwiseFunction {
    const float *x;
    float *y;
    int64 count;
    int function;
    float parameter;
};

__device__ __forceinline__ float pointwise_value(int function, float parameter, float x, float y) {
    switch (function) {
    case CLAMP: return x > parameter ? parameter : x < -parameter ? -parameter : x;
    case CLAMP_GRADIENT: return fabsf(x) > parameter ? 0.0f : y;
    case SOFTCAP: return parameter * tanhf(x / parameter);
    case SOFTCAP_GRADIENT: return y * (1.0f - x / parameter * (x / parameter));
    case RECIPROCAL: return 1.0f / (x < parameter ? parameter : x);
    default: return x < parameter ? 0.0f : -y / (x * x);
    }
}

__device__ __forceinline__ void pointwise_elements(const PointwiseFunction &a) {
    for (int64 i = thread(); i < a.count; i += threads())
        a.y[i] = pointwise_value(a.function, a.parameter, a.x[i], a.y[i]);
}

KERNEL(pointwise_function, PointwiseFunction, pointwise_elements)
