// Norms of rows, and the residual add before a norm. A warp per row.
//
// With h the row before gain and bias, and g the gain: y = g h + b. Backward, for the norms that divide by a root:
// dx = (g dy - mean(g dy) - h mean(g dy h)) / root, the first mean only with a centered row.
#pragma once
#include "common.cuh"

enum NormFunction { RMSNORM, LAYERNORM, L2, DYT, DERF };
enum Gain { NO_GAIN, PLAIN_GAIN, ONE_PLUS_GAIN };

struct NormConfig {
    int function;
    int gain;
    int has_bias;
    int width;
    // Number of gain and bias vectors: row r uses vector r % groups.
    int groups;
    float eps;
};

// Parameters of a row: [gains][biases][alpha][shift], those that exist.
struct NormParameters {
    const float *gain;
    const float *bias;
    float alpha;
    float shift;
};

__device__ __forceinline__ int gain_length(const NormConfig &c) { return c.gain == NO_GAIN ? 0 : c.groups * c.width; }
__device__ __forceinline__ int bias_length(const NormConfig &c) { return c.has_bias ? c.groups * c.width : 0; }
__device__ __forceinline__ bool is_pointwise(const NormConfig &c) { return c.function == DYT || c.function == DERF; }
__device__ __forceinline__ int scalars(const NormConfig &c) { return c.function == DYT ? 1 : c.function == DERF ? 2 : 0; }
__device__ __forceinline__ int parameters(const NormConfig &c) { return gain_length(c) + bias_length(c) + scalars(c); }

__device__ __forceinline__ NormParameters norm_parameters(const NormConfig &c, const float *all, int64 row) {
    const int first = int(row % c.groups) * c.width;
    const float *bias = all + gain_length(c);
    const float *own = bias + bias_length(c);
    NormParameters p;
    p.gain = c.gain == NO_GAIN ? nullptr : all + first;
    p.bias = c.has_bias ? bias + first : nullptr;
    p.alpha = is_pointwise(c) ? own[0] : 1.0f;
    p.shift = c.function == DERF ? own[1] : 0.0f;
    return p;
}

__device__ __forceinline__ float gain_at(const NormConfig &c, const NormParameters &p, int i) {
    if (p.gain == nullptr) return 1.0f;
    return c.gain == ONE_PLUS_GAIN ? 1.0f + p.gain[i] : p.gain[i];
}

// Mean that is subtracted, and factor of the difference.
struct NormStats {
    float mean;
    float factor;
};

// Statistics of a row of c.width elements x(i).
template <class X> __device__ __forceinline__ NormStats norm_stats_of(const NormConfig &c, const X &x) {
    NormStats stats = {0.0f, 1.0f};
    if (is_pointwise(c)) return stats;
    if (c.function == LAYERNORM) {
        float sum = 0.0f;
        for (int i = lane(); i < c.width; i += WARP_SIZE) sum += x(i);
        stats.mean = warp_sum(sum) / float(c.width);
    }
    float squares = 0.0f;
    for (int i = lane(); i < c.width; i += WARP_SIZE) {
        const float centered = x(i) - stats.mean;
        squares += centered * centered;
    }
    squares = warp_sum(squares);
    if (c.function != L2) squares /= float(c.width);
    stats.factor = 1.0f / sqrtf(squares + c.eps);
    return stats;
}

// Value of a pointwise norm function, and its derivative.
struct ValueAndDerivative {
    float value;
    float derivative;
};

__device__ __forceinline__ ValueAndDerivative pointwise(const NormConfig &c, float z) {
    if (c.function == DYT) {
        const float t = tanhf(z);
        return {t, 1.0f - t * t};
    }
    return {erff(z), 1.128379167f * expf(-z * z)};
}

__device__ __forceinline__ float normalized(const NormConfig &c, const NormParameters &p, const NormStats &s, float x) {
    return is_pointwise(c) ? pointwise(c, p.alpha * x + p.shift).value : (x - s.mean) * s.factor;
}

// Means over a row that the gradient of its input needs: of g dy, and of g dy h.
struct NormMeans {
    float mean;
    float projection;
};

// Adds the gradients of the parameters of a row x(i) with output gradients dy(i) to `dparams`, of the layout of the
// parameters, which belongs to this warp.
template <class X, class Dy>
__device__ __forceinline__ NormMeans add_parameter_gradients(const NormConfig &c, const NormParameters &p,
                                                             const NormStats &stats, int64 row, const X &x, const Dy &dy,
                                                             float *dparams) {
    const int first = int(row % c.groups) * c.width;
    float *dgain = c.gain == NO_GAIN ? nullptr : dparams + first;
    float *dbias = c.has_bias ? dparams + gain_length(c) + first : nullptr;
    float sum = 0.0f, projection = 0.0f, dalpha = 0.0f, dshift = 0.0f;
    for (int i = lane(); i < c.width; i += WARP_SIZE) {
        const float x_i = x(i), dy_i = dy(i);
        const float h = normalized(c, p, stats, x_i);
        const float dh = dy_i * gain_at(c, p, i);
        sum += dh;
        projection += dh * h;
        if (dgain != nullptr) dgain[i] += dy_i * h;
        if (dbias != nullptr) dbias[i] += dy_i;
        if (is_pointwise(c)) {
            const float dz = dh * pointwise(c, p.alpha * x_i + p.shift).derivative;
            dalpha += dz * x_i;
            dshift += dz;
        }
    }
    if (is_pointwise(c)) {
        dalpha = warp_sum(dalpha);
        dshift = warp_sum(dshift);
        float *scalar = dparams + gain_length(c) + bias_length(c);
        if (lane() == 0) scalar[0] += dalpha;
        if (lane() == 0 && c.function == DERF) scalar[1] += dshift;
    }
    const float count = c.function == L2 ? 1.0f : float(c.width);
    return {c.function == LAYERNORM ? warp_sum(sum) / count : 0.0f, warp_sum(projection) / count};
}

// Gradient of an element x of a row, from dh = g dy.
__device__ __forceinline__ float norm_input_gradient(const NormConfig &c, const NormParameters &p, const NormStats &stats,
                                                     float x, float dh, const NormMeans &means) {
    if (is_pointwise(c)) return dh * pointwise(c, p.alpha * x + p.shift).derivative * p.alpha;
    return (dh - means.mean - (x - stats.mean) * stats.factor * means.projection) * stats.factor;
}

struct NormForward {
    // Added to x first, if it is not null.
    Floats other;
    FloatsMut x;
    FloatsMut y;
    const float *params;
    int64 rows;
    NormConfig config;
};

__device__ __forceinline__ void norm_forward_rows(const NormForward &a) {
    const NormConfig &c = a.config;
    for (int64 row = int64(blockIdx.x) * warps() + warp(); row < a.rows; row += int64(gridDim.x) * warps()) {
        const int64 first = row * c.width;
        if (a.other.data != nullptr) {
            // A lane reads only what it has written itself.
            for (int i = lane(); i < c.width; i += WARP_SIZE)
                store(a.x, first + i, load(a.other, first + i) + load(a.x, first + i));
        }
        const NormParameters p = norm_parameters(c, a.params, row);
        const auto x = [&](int i) { return load(a.x, first + i); };
        const NormStats stats = norm_stats_of(c, x);
        for (int i = lane(); i < c.width; i += WARP_SIZE) {
            const float h = normalized(c, p, stats, x(i));
            store(a.y, first + i, h * gain_at(c, p, i) + (p.bias == nullptr ? 0.0f : p.bias[i]));
        }
    }
}

KERNEL(norm_forward, NormForward, norm_forward_rows)

struct NormBackward {
    Floats x;
    Floats dy;
    // Overwritten, or added to.
    FloatsMut dx;
    const float *params;
    // (blocks, parameters): sums of the rows of a block.
    float *partials;
    int64 rows;
    NormConfig config;
    int accumulate;
};

// Each warp sums the gradients of parameters in its own part of the shared memory, (warps, parameters), so that the order
// of the sums is fixed.
__device__ __forceinline__ void norm_backward_rows(const NormBackward &a) {
    SHARED(float, sums);
    const NormConfig &c = a.config;
    const int count = parameters(c);
    float *own = sums + warp() * count;
    for (int i = lane(); i < count; i += WARP_SIZE) own[i] = 0.0f;
    __syncwarp();
    for (int64 row = int64(blockIdx.x) * warps() + warp(); row < a.rows; row += int64(gridDim.x) * warps()) {
        const int64 first = row * c.width;
        const NormParameters p = norm_parameters(c, a.params, row);
        const auto x = [&](int i) { return load(a.x, first + i); };
        const auto dy = [&](int i) { return load(a.dy, first + i); };
        const NormStats stats = norm_stats_of(c, x);
        const NormMeans means = add_parameter_gradients(c, p, stats, row, x, dy, own);
        for (int i = lane(); i < c.width; i += WARP_SIZE) {
            const float dx = norm_input_gradient(c, p, stats, x(i), dy(i) * gain_at(c, p, i), means);
            store(a.dx, first + i, a.accumulate ? load(a.dx, first + i) + dx : dx);
        }
    }
    store_block_sums(sums, a.partials, count);
}

KERNEL(norm_backward, NormBackward, norm_backward_rows)
