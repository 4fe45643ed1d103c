// Sums over rows, in pieces: a block sums a piece of the rows, for some columns; sum_partials (rows.cu) sums the pieces,
// always in the same order.
#pragma once
#include "drydock.cuh"

// partials[piece, column] = the sum of value(row, column) over the piece's rows, one after the other.
template <typename Value>
__device__ __forceinline__ void sum_piece(float* partials, unsigned rows, unsigned piece, unsigned width, Value value) {
    const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const unsigned from = blockIdx.x * piece;
    const unsigned to = from + piece < rows ? from + piece : rows;
    float sum = 0.0f;
    for (unsigned row = from; row < to; row++) sum += value(row, column);
    partials[(unsigned long long)blockIdx.x * width + column] = sum;
}
