// Activation functions, gated or not; rows of gated ones are [gate | up].
#pragma once
#include "common.cuh"

enum ActivationFunction { SWIGLU, GEGLU, GELU, GELU_ERF, RELU2 };

struct ActivationValue {
    float value;
    float derivative;
};

// The function of the gate, or the whole activation, and its derivative.
__device__ __forceinline__ ActivationValue activation_of(int function, float x) {
    switch (function) {
    case SWIGLU: {
        const float s = 1.0f / (1.0f + expf(-x));
        return {x * s, s + x * s * (1.0f - s)};
    }
    case GEGLU:
    case GELU: {
        // x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3). Beyond 20 it is x or 0, and x^3 stays finite.
        const float root = 0.7978845608f;
        const float bounded = x > 20.0f ? 20.0f : x < -20.0f ? -20.0f : x;
        const float t = tanhf(root * (bounded + 0.044715f * bounded * bounded * bounded));
        const float slope = root * (1.0f + 3.0f * 0.044715f * bounded * bounded);
        return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * bounded * (1.0f - t * t) * slope};
    }
    case GELU_ERF: {
        const float cdf = 0.5f * (1.0f + erff(x * 0.7071067812f));
        const float density = 0.3989422804f * expf(-0.5f * x * x);
        return {x * cdf, cdf + x * density};
    }
    default: {
        // NaN is not less.
        const float positive = x <= 0.0f ? 0.0f : x;
        return {positive * positive, 2.0f * positive};
    }
    }
}

__device__ __forceinline__ bool is_gated(int function) { return function == SWIGLU || function == GEGLU; }

struct ActivationForward {
    Floats x;
    FloatsMut y;
    int64 rows;
    // Elements of a row of y.
    int width;
    int function;
};

__device__ __forceinline__ void activation_forward_elements(const ActivationForward &a) {
    const bool gated = is_gated(a.function);
    for (int64 i = thread(); i < a.rows * a.width; i += threads()) {
        const int64 at = gated ? i / a.width * 2 * a.width + i % a.width : i;
        const float value = activation_of(a.function, load(a.x, at)).value;
        store(a.y, i, gated ? value * load(a.x, at + a.width) : value);
    }
}

KERNEL(activation_forward, ActivationForward, activation_forward_elements)

struct ActivationBackward {
    Floats x;
    FloatsMut dx;
    // The gradient of the output, which is overwritten with the output.
    FloatsMut dy_then_y;
    int64 rows;
    int width;
    int function;
};

__device__ __forceinline__ void activation_backward_elements(const ActivationBackward &a) {
    const bool gated = is_gated(a.function);
    for (int64 i = thread(); i < a.rows * a.width; i += threads()) {
        const int64 at = gated ? i / a.width * 2 * a.width + i % a.width : i;
        const float dy = load(a.dy_then_y, i);
        const ActivationValue f = activation_of(a.function, load(a.x, at));
        const float up = gated ? load(a.x, at + a.width) : 1.0f;
        store(a.dx, at, dy * f.derivative * up);
        if (gated) store(a.dx, at + a.width, dy * f.value);
        store(a.dy_then_y, i, f.value * up);
    }
}

KERNEL(activation_backward, ActivationBackward, activation_backward_elements)
