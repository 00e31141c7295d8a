// Decoding with a cache: rows of new positions, each in a slot of the cache, whose past rows they attend to.
#pragma once
#include "common.cuh"

// Where a new row belongs: the slot of the cache, and the position in it.
struct CacheRow {
    int slot;
    int position;
};

struct SequenceRows {
    const RunArguments *run;
    CacheRow *rows;
    int64 count;
    // Rows of each sequence.
    int length;
};

// Rows of sequences of equal length, one for each slot.
__device__ __forceinline__ void sequence_rows_of(const SequenceRows &a) {
    for (int64 i = thread(); i < a.count; i += threads())
        a.rows[i] = CacheRow{int(i / a.length), int(a.run->past + i % a.length)};
}

KERNEL(sequence_rows, SequenceRows, sequence_rows_of)

struct SegmentRows {
    // Slot, cached positions and new rows of each segment.
    const int *segments;
    CacheRow *rows;
    int64 count;
    int segment_count;
};

__device__ __forceinline__ void segment_rows_of(const SegmentRows &a) {
    for (int64 i = thread(); i < a.count; i += threads()) {
        int64 first = 0;
        for (int s = 0; s < a.segment_count; ++s) {
            const int *segment = a.segments + 3 * s;
            if (i < first + segment[2]) {
                a.rows[i] = CacheRow{segment[0], int(segment[1] + i - first)};
                break;
            }
            first += segment[2];
        }
    }
}

KERNEL(segment_rows, SegmentRows, segment_rows_of)

struct RowPositions {
    const CacheRow *rows;
    int *positions;
    int64 count;
};

__device__ __forceinline__ void row_positions_of(const RowPositions &a) {
    for (int64 i = thread(); i < a.count; i += threads()) a.positions[i] = a.rows[i].position;
}

KERNEL(row_positions, RowPositions, row_positions_of)

struct AppendRows {
    const CacheRow *rows;
    // (count, width)
    Floats x;
    // (slots, capacity, columns)
    float *cache;
    int64 count;
    int64 capacity;
    int width;
    int first;
    int columns;
};

// cache[slot, position] = x[i, first ..]. Positions beyond the capacity are errors of the host, and not written.
__device__ __forceinline__ void append_rows_of(const AppendRows &a) {
    for (int64 i = thread(); i < a.count * a.columns; i += threads()) {
        const int64 row = i / a.columns, column = i % a.columns;
        const CacheRow at = a.rows[row];
        if (at.position < a.capacity)
            a.cache[(at.slot * a.capacity + at.position) * a.columns + column] = load(a.x, row * a.width + a.first + column);
    }
}

KERNEL(append_rows, AppendRows, append_rows_of)

struct CachedAttention {
    const CacheRow *rows;
    // Queries of a row are `q_width` apart, those of its heads `key_dim`.
    Floats q;
    // (slots, capacity, columns): keys of the key/value heads, and from `first_value` on their values.
    const float *cache;
    // (count, heads, value_dim)
    FloatsMut y;
    int64 count;
    int64 capacity;
    int heads;
    int kv_heads;
    int key_dim;
    int value_dim;
    int q_width;
    int columns;
    int first_value;
    // Keys that a query attends to, itself included; 0: all.
    int window;
    float scale;
    // 0: none.
    float softcap;
};

// A block computes one head of one row. Its warps take turns at the keys, each with the softmax of its own keys in shared
// memory, (warps, 2 + value_dim): the largest logit, the sum of exponentials, and the weighted sum of values.
__device__ __forceinline__ void cached_attention_of(const CachedAttention &a) {
    SHARED(float, shared);
    const int size = 2 + a.value_dim;
    float *own = shared + warp() * size;
    float *sums = own + 2;
    for (int64 index = blockIdx.x; index < a.count * a.heads; index += gridDim.x) {
        const int64 row = index / a.heads;
        const int head = int(index % a.heads), kv_head = head / (a.heads / a.kv_heads);
        const CacheRow at = a.rows[row];
        const int64 q = row * a.q_width + int64(head) * a.key_dim;
        const float *slot = a.cache + at.slot * a.capacity * a.columns;
        const int first = a.window > 0 ? max(at.position + 1 - a.window, 0) : 0;
        float largest = -INFINITY, total = 0.0f;
        for (int d = lane(); d < a.value_dim; d += WARP_SIZE) sums[d] = 0.0f;
        for (int key = first + warp(); key <= at.position; key += warps()) {
            const float *k = slot + int64(key) * a.columns + int64(kv_head) * a.key_dim;
            float product = 0.0f;
            for (int d = lane(); d < a.key_dim; d += WARP_SIZE) product += load(a.q, q + d) * k[d];
            float logit = a.scale * warp_sum(product);
            if (a.softcap > 0.0f) logit = a.softcap * tanhf(logit / a.softcap);
            const float next = fmaxf(largest, logit);
            // Of the first key there is nothing to correct, and the difference of infinities is not a number.
            const float correction = largest == -INFINITY ? 0.0f : expf(largest - next);
            const float weight = expf(logit - next);
            const float *v = slot + int64(key) * a.columns + a.first_value + int64(kv_head) * a.value_dim;
            for (int d = lane(); d < a.value_dim; d += WARP_SIZE) sums[d] = correction * sums[d] + weight * v[d];
            total = correction * total + weight;
            largest = next;
        }
        if (lane() == 0) {
            own[0] = largest;
            own[1] = total;
        }
        __syncthreads();
        // Every position attends to itself, so that the first warp has a key; with fewer keys than warps, the last have none.
        const int parts = min(warps(), at.position + 1 - first);
        float most = shared[0];
        for (int w = 1; w < parts; ++w) most = fmaxf(most, shared[w * size]);
        float all = 0.0f;
        for (int w = 0; w < parts; ++w) all += shared[w * size + 1] * expf(shared[w * size] - most);
        for (int d = int(threadIdx.x); d < a.value_dim; d += int(blockDim.x)) {
            float sum = 0.0f;
            for (int w = 0; w < parts; ++w) sum += shared[w * size + 2 + d] * expf(shared[w * size] - most);
            store(a.y, index * a.value_dim + d, sum / all);
        }
        __syncthreads();
    }
}

KERNEL(cached_attention, CachedAttention, cached_attention_of)

struct RotateChannels {
    // Rows of `width`, of which `channels` from `first` on are rotated.
    float *x;
    // (length, channels): cosines, then sines.
    const float *table;
    int64 count;
    int width;
    int first;
    int channels;
    // Rows that share a position, and positions of the table.
    int rows_per_position;
    int length;
};

__device__ __forceinline__ void rotate_channels_of(const RotateChannels &a) {
    const int half = a.channels / 2;
    for (int64 i = thread(); i < a.count * half; i += threads()) {
        const int64 row = i / half, j = i % half;
        const float *angles = a.table + row / a.rows_per_position % a.length * a.channels;
        float *x = a.x + row * a.width + a.first;
        const float even = x[j], odd = x[half + j], cosine = angles[j], sine = angles[half + j];
        x[j] = even * cosine - odd * sine;
        x[half + j] = odd * cosine + even * sine;
    }
}

KERNEL(rotate_channels, RotateChannels, rotate_channels_of)
