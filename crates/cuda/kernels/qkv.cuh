// Clamp, norms, rotation and scale of packed [q heads | k heads | v heads]. A warp per norm row: a head, or all heads of a
// part where its norm spans them.
#pragma once
#include "norm.cuh"

struct QkvConfig {
    // Norms of q, k and v; a width of 0: none.
    NormConfig norms[3];
    int heads;
    int kv_heads;
    int head_dim;
    int seq;
    // Of the projection's elements; infinity: none.
    float clip;
    // Factor on q and k after norm and rotation.
    float qk_scale;
    // 1: rotation before the norm.
    int norm_after_rotation;
};

// A norm row: part (q, k or v), first column, width, and index among those of its part.
struct QkvRow {
    int part;
    int index;
    int first;
    int width;
};

__device__ __forceinline__ int part_heads(const QkvConfig &c, int part) { return part == 0 ? c.heads : c.kv_heads; }
__device__ __forceinline__ int row_width(const QkvConfig &c, int part) {
    return c.norms[part].width > 0 ? c.norms[part].width : c.head_dim;
}
__device__ __forceinline__ int packed_width(const QkvConfig &c) { return (c.heads + 2 * c.kv_heads) * c.head_dim; }
__device__ __forceinline__ int rows_of_part(const QkvConfig &c, int part) {
    return part_heads(c, part) * c.head_dim / row_width(c, part);
}
__device__ __forceinline__ int rows_of_token(const QkvConfig &c) {
    return rows_of_part(c, 0) + rows_of_part(c, 1) + rows_of_part(c, 2);
}

__device__ __forceinline__ QkvRow qkv_row(const QkvConfig &c, int index) {
    int first = 0;
    for (int part = 0;; ++part) {
        const int rows = rows_of_part(c, part), width = row_width(c, part);
        if (part == 2 || index < rows) return {part, index, first + index * width, width};
        index -= rows;
        first += rows * width;
    }
}

// Channel i of a row whose channels are f, rotated head by head; `rotation` holds cosines, then sines. Inversely for a
// sign of -1.
template <class F>
__device__ __forceinline__ float rotated(const float *rotation, int head_dim, int i, float sign, F f) {
    const int half = head_dim / 2, j = i % head_dim, angle = j % half;
    const float cosine = rotation[angle], sine = sign * rotation[half + angle];
    return j < half ? cosine * f(i) - sine * f(i + half) : sine * f(i - half) + cosine * f(i);
}

struct QkvForward {
    Floats x;
    FloatsMut y;
    // (seq, head_dim)
    const float *rotations;
    const float *params[3];
    // Rows (b, t).
    int64 rows;
    QkvConfig config;
};

// A norm row before the norm: clamped, and rotated if the norm comes after.
struct BeforeNorm {
    Floats x;
    int64 first;
    const float *rotation;
    int head_dim;
    float clip;
    bool is_rotated;

    __device__ __forceinline__ float clamped(int i) const {
        const float value = load(x, first + i);
        return value > clip ? clip : value < -clip ? -clip : value;
    }
    __device__ __forceinline__ float operator()(int i) const {
        if (!is_rotated) return clamped(i);
        return rotated(rotation, head_dim, i, 1.0f, [&](int j) { return clamped(j); });
    }
};

__device__ __forceinline__ void qkv_forward_rows(const QkvForward &a) {
    const QkvConfig &c = a.config;
    const int per_token = rows_of_token(c);
    for (int64 at = int64(blockIdx.x) * warps() + warp(); at < a.rows * per_token; at += int64(gridDim.x) * warps()) {
        const int64 token = at / per_token;
        const QkvRow row = qkv_row(c, int(at % per_token));
        const float *rotation = a.rotations + token % c.seq * c.head_dim;
        const bool rotates = row.part < 2;
        const int64 first = token * packed_width(c) + row.first;
        const BeforeNorm before = {a.x, first, rotation, c.head_dim, c.clip, rotates && c.norm_after_rotation};
        const NormConfig &norm = c.norms[row.part];
        const bool has_norm = norm.width > 0;
        NormParameters p = {};
        NormStats stats = {};
        if (has_norm) {
            p = norm_parameters(norm, a.params[row.part], row.index);
            stats = norm_stats_of(norm, before);
        }
        const auto after = [&](int i) {
            const float x = before(i);
            if (!has_norm) return x;
            return normalized(norm, p, stats, x) * gain_at(norm, p, i) + (p.bias == nullptr ? 0.0f : p.bias[i]);
        };
        for (int i = lane(); i < row.width; i += WARP_SIZE) {
            const bool rotate = rotates && !c.norm_after_rotation;
            const float y = rotate ? rotated(rotation, c.head_dim, i, 1.0f, after) : after(i);
            store(a.y, first + i, rotates ? c.qk_scale * y : y);
        }
    }
}

KERNEL(qkv_forward, QkvForward, qkv_forward_rows)

struct QkvBackward {
    Floats x;
    Floats dy;
    FloatsMut dx;
    const float *rotations;
    const float *params[3];
    // (blocks, parameters of all norms)
    float *partials;
    int64 rows;
    QkvConfig config;
};

__device__ __forceinline__ int parameters_of_part(const QkvConfig &c, int part) {
    return c.norms[part].width > 0 ? parameters(c.norms[part]) : 0;
}

__device__ __forceinline__ void qkv_backward_rows(const QkvBackward &a) {
    SHARED(float, sums);
    const QkvConfig &c = a.config;
    const int of_q = parameters_of_part(c, 0), of_k = parameters_of_part(c, 1);
    const int count = of_q + of_k + parameters_of_part(c, 2);
    float *own = sums + warp() * count;
    for (int i = lane(); i < count; i += WARP_SIZE) own[i] = 0.0f;
    __syncwarp();
    const int per_token = rows_of_token(c);
    for (int64 at = int64(blockIdx.x) * warps() + warp(); at < a.rows * per_token; at += int64(gridDim.x) * warps()) {
        const int64 token = at / per_token;
        const QkvRow row = qkv_row(c, int(at % per_token));
        const float *rotation = a.rotations + token % c.seq * c.head_dim;
        const bool rotates = row.part < 2;
        const int64 first = token * packed_width(c) + row.first;
        const BeforeNorm before = {a.x, first, rotation, c.head_dim, c.clip, rotates && c.norm_after_rotation};
        const NormConfig &norm = c.norms[row.part];
        const float scale = rotates ? c.qk_scale : 1.0f;
        const auto scaled = [&](int i) { return scale * load(a.dy, first + i); };
        // Gradient of the norm's output.
        const auto dnorm = [&](int i) {
            return rotates && !c.norm_after_rotation ? rotated(rotation, c.head_dim, i, -1.0f, scaled) : scaled(i);
        };
        NormParameters p = {};
        NormStats stats = {};
        NormMeans means = {};
        if (norm.width > 0) {
            p = norm_parameters(norm, a.params[row.part], row.index);
            stats = norm_stats_of(norm, before);
            float *dparams = own + (row.part == 0 ? 0 : row.part == 1 ? of_q : of_q + of_k);
            means = add_parameter_gradients(norm, p, stats, row.index, before, dnorm, dparams);
        }
        // Gradient of the norm's input.
        const auto dbefore = [&](int i) {
            if (norm.width == 0) return dnorm(i);
            return norm_input_gradient(norm, p, stats, before(i), dnorm(i) * gain_at(norm, p, i), means);
        };
        for (int i = lane(); i < row.width; i += WARP_SIZE) {
            const float d = rotates && c.norm_after_rotation ? rotated(rotation, c.head_dim, i, -1.0f, dbefore) : dbefore(i);
            store(a.dx, first + i, fabsf(load(a.x, first + i)) > c.clip ? 0.0f : d);
        }
    }
    store_block_sums(sums, a.partials, count);
}

KERNEL(qkv_backward, QkvBackward, qkv_backward_rows)
