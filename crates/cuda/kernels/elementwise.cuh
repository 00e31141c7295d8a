// Sums, scaled values, conversions, and sums of partial results.
#pragma once
#include "common.cuh"

struct AddTo {
    Floats x;
    FloatsMut sum;
    int64 count;
};

__device__ __forceinline__ void add_to_elements(const AddTo &a) {
    for (int64 i = thread(); i < a.count; i += threads()) store(a.sum, i, load(a.x, i) + load(a.sum, i));
}

KERNEL(add_to, AddTo, add_to_elements)

struct ScaleBy {
    FloatsMut x;
    int64 count;
    float factor;
};

__device__ __forceinline__ void scale_elements(const ScaleBy &a) {
    for (int64 i = thread(); i < a.count; i += threads()) store(a.x, i, a.factor * load(a.x, i));
}

KERNEL(scale_by, ScaleBy, scale_elements)

struct Convert {
    Floats x;
    FloatsMut y;
    int64 count;
};

__device__ __forceinline__ void convert_elements(const Convert &a) {
    for (int64 i = thread(); i < a.count; i += threads()) store(a.y, i, load(a.x, i));
}

KERNEL(convert, Convert, convert_elements)

// y[i] = sum of partials[j][i] over j, in this order.
struct SumPartials {
    const float *partials;
    float *y;
    int64 count;
    int parts;
};

__device__ __forceinline__ void sum_partial_elements(const SumPartials &a) {
    for (int64 i = thread(); i < a.count; i += threads()) {
        float total = 0.0f;
        for (int part = 0; part < a.parts; ++part) total += a.partials[part * a.count + i];
        a.y[i] = total;
    }
}

KERNEL(sum_partials, SumPartials, sum_partial_elements)
