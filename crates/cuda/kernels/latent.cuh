// Packed queries, keys and values of multi-head latent attention: heads of [nope | rotary] channels.
#pragma once
#include "common.cuh"

struct LatentHeads {
    // (tokens, heads (nope + rope)), (tokens, heads (nope + value)), (tokens, rope)
    float *q;
    float *kv;
    float *key;
    // (seq, rope): cosines, then sines.
    const float *rotations;
    // (tokens, heads (2 (nope + rope) + value)): [q heads | k heads | v heads]
    float *packed;
    int64 tokens;
    int seq;
    int heads;
    int nope;
    int rope;
    int value;
};

// Channel i of a row x of `rope` channels, rotated; inversely for a sign of -1.
__device__ __forceinline__ float rotated_channel(const float *x, const float *rotation, int rope, int i, float sign) {
    const int half = rope / 2, angle = i % half;
    const float cosine = rotation[angle], sine = sign * rotation[half + angle];
    return i < half ? cosine * x[i] - sine * x[i + half] : sine * x[i - half] + cosine * x[i];
}

// A thread per element of the packed rows.
__device__ __forceinline__ void assemble_latent_heads(const LatentHeads &a) {
    const int d = a.nope + a.rope, e = a.nope + a.value, width = a.heads * (2 * d + a.value);
    for (int64 i = thread(); i < a.tokens * width; i += threads()) {
        const int64 token = i / width;
        const int column = int(i % width);
        const float *rotation = a.rotations + token % a.seq * a.rope;
        if (column >= 2 * a.heads * d) {
            const int at = column - 2 * a.heads * d;
            a.packed[i] = a.kv[token * a.heads * e + at / a.value * e + a.nope + at % a.value];
            continue;
        }
        const bool is_key = column >= a.heads * d;
        const int at = column % (a.heads * d), head = at / d, channel = at % d;
        if (channel >= a.nope) {
            const float *rotary = is_key ? a.key + token * a.rope : a.q + (token * a.heads + head) * d + a.nope;
            a.packed[i] = rotated_channel(rotary, rotation, a.rope, channel - a.nope, 1.0f);
        } else {
            a.packed[i] = is_key ? a.kv[(token * a.heads + head) * e + channel] : a.q[(token * a.heads + head) * d + channel];
        }
    }
}

KERNEL(latent_heads, LatentHeads, assemble_latent_heads)

// Gradients of q, kv and key from that of the packed rows: a thread per element of them, one after another in a token.
__device__ __forceinline__ void latent_head_gradients_of(const LatentHeads &a) {
    const int d = a.nope + a.rope, e = a.nope + a.value, width = a.heads * (2 * d + a.value);
    const int of_q = a.heads * d, of_kv = a.heads * e, count = of_q + of_kv + a.rope;
    for (int64 i = thread(); i < a.tokens * count; i += threads()) {
        const int64 token = i / count;
        const int column = int(i % count);
        const float *rotation = a.rotations + token % a.seq * a.rope;
        const float *queries = a.packed + token * width, *keys = queries + of_q, *values = keys + of_q;
        if (column < of_q) {
            const int head = column / d, channel = column % d;
            const float *dq = queries + head * d;
            a.q[token * of_q + column] =
                channel < a.nope ? dq[channel] : rotated_channel(dq + a.nope, rotation, a.rope, channel - a.nope, -1.0f);
        } else if (column < of_q + of_kv) {
            const int at = column - of_q, head = at / e, channel = at % e;
            a.kv[token * of_kv + at] = channel < a.nope ? keys[head * d + channel] : values[head * a.value + channel - a.nope];
        } else {
            // The rotation is linear: the sum over the heads of rotated gradients.
            const int channel = column - of_q - of_kv;
            float sum = 0.0f;
            for (int head = 0; head < a.heads; ++head)
                sum += rotated_channel(keys + head * d + a.nope, rotation, a.rope, channel, -1.0f);
            a.key[token * a.rope + channel] = sum;
        }
    }
}

KERNEL(latent_head_gradients, LatentHeads, latent_head_gradients_of)
