// Cosines and sines of the angles of positions.
#pragma once
#include "common.cuh"

constexpr int MAX_FREQUENCIES = 128;

struct RopeTable {
    const RunArguments *run;
    // Positions; null for those after the cached ones.
    const int *given;
    // (positions, 2 frequencies): cosines, then sines.
    float *table;
    int positions;
    int frequency_count;
    double magnitude;
    double frequencies[MAX_FREQUENCIES];
};

__device__ __forceinline__ void rope_table_elements(const RopeTable &a) {
    for (int64 i = thread(); i < int64(a.positions) * a.frequency_count; i += threads()) {
        const int64 position = i / a.frequency_count, j = i % a.frequency_count;
        const int64 at = a.given ? a.given[position] : a.run->past + position;
        const double angle = double(at) * a.frequencies[j];
        float *row = a.table + 2 * position * a.frequency_count;
        row[j] = float(a.magnitude * cos(angle));
        row[a.frequency_count + j] = float(a.magnitude * sin(angle));
    }
}

KERNEL(rope_table, RopeTable, rope_table_elements)
