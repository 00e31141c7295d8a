// Muon: momentum, the elementwise parts of the Newton-Schulz iteration, and the update. Matrix products are commands.
#pragma once
#include "adamw.cuh"

struct MuonMomentum {
    const StepCoefficients *coefficients;
    const float *g;
    float *m;
    float *u;
    int64 count;
    float momentum;
    int nesterov;
};

// m = momentum m + g, u = g + momentum m, or m without Nesterov momentum; u = 0 if nothing is to be changed.
__device__ __forceinline__ void muon_momentum_of(const MuonMomentum &a) {
    const StepCoefficients c = *a.coefficients;
    for (int64 i = thread(); i < a.count; i += threads()) {
        if (!c.is_finite) {
            a.u[i] = 0.0f;
            continue;
        }
        const float g = c.clip * a.g[i];
        const float m = a.momentum * a.m[i] + g;
        a.m[i] = m;
        a.u[i] = a.nesterov ? g + a.momentum * m : m;
    }
}

KERNEL(muon_momentum, MuonMomentum, muon_momentum_of)

struct DivideByNorm {
    float *x;
    // Euclidean norm, one element.
    const double *norm;
    int64 count;
    double eps;
};

__device__ __forceinline__ void divide_by_norm_of(const DivideByNorm &a) {
    const double factor = 1.0 / (*a.norm + a.eps);
    for (int64 i = thread(); i < a.count; i += threads()) a.x[i] = float(double(a.x[i]) * factor);
}

KERNEL(divide_by_norm, DivideByNorm, divide_by_norm_of)

// y = alpha x + beta y
struct LinearCombination {
    const float *x;
    float *y;
    int64 count;
    float alpha;
    float beta;
};

__device__ __forceinline__ void linear_combination_of(const LinearCombination &a) {
    for (int64 i = thread(); i < a.count; i += threads()) a.y[i] = a.alpha * a.x[i] + a.beta * a.y[i];
}

KERNEL(linear_combination, LinearCombination, linear_combination_of)

struct MuonUpdate {
    const StepCoefficients *coefficients;
    // Orthogonalized matrix.
    const float *o;
    float *p;
    // Sums of squares of updates, and `stride` further those of values before; one for each block.
    double *partials;
    int64 count;
    int64 stride;
    float size;
    float weight_decay;
};

// p -= lr (size o + weight_decay p)
__device__ __forceinline__ void muon_update_of(const MuonUpdate &a) {
    SHARED(double, scratch);
    const StepCoefficients c = *a.coefficients;
    double updates = 0.0, values = 0.0;
    if (c.is_finite) {
        for (int64 i = thread(); i < a.count; i += threads()) {
            const float p = a.p[i];
            const float update = -c.lr * (a.size * a.o[i] + a.weight_decay * p);
            a.p[i] = p + update;
            updates += double(update) * double(update);
            values += double(p) * double(p);
        }
    }
    store_update_squares(updates, values, a.partials, a.stride, scratch);
}

KERNEL(muon_update, MuonUpdate, muon_update_of)
