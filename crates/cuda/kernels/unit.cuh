// Rows and columns of matrices divided by their Euclidean norm; zero ones are unchanged.
#pragma once
#include "common.cuh"

struct UnitVectors {
    float *matrix;
    int64 rows;
    int columns;
};

// In double precision the square of no number overflows or underflows.
__device__ __forceinline__ double unit_factor(double squares) { return squares == 0.0 ? 1.0 : 1.0 / sqrt(squares); }

// A block per row.
__device__ __forceinline__ void unit_row(const UnitVectors &a) {
    SHARED(double, scratch);
    for (int64 row = blockIdx.x; row < a.rows; row += gridDim.x) {
        float *x = a.matrix + row * a.columns;
        double squares = 0.0;
        for (int i = int(threadIdx.x); i < a.columns; i += int(blockDim.x)) squares += double(x[i]) * double(x[i]);
        const double factor = unit_factor(block_sum(squares, scratch));
        for (int i = int(threadIdx.x); i < a.columns; i += int(blockDim.x)) x[i] = float(double(x[i]) * factor);
    }
}

KERNEL(unit_rows, UnitVectors, unit_row)

// A thread per column: neighbouring threads read neighbouring elements.
__device__ __forceinline__ void unit_column(const UnitVectors &a) {
    for (int64 column = thread(); column < a.columns; column += threads()) {
        double squares = 0.0;
        for (int64 row = 0; row < a.rows; ++row) {
            const double x = double(a.matrix[row * a.columns + column]);
            squares += x * x;
        }
        const double factor = unit_factor(squares);
        for (int64 row = 0; row < a.rows; ++row) {
            float &x = a.matrix[row * a.columns + column];
            x = float(double(x) * factor);
        }
    }
}

KERNEL(unit_columns, UnitVectors, unit_column)
