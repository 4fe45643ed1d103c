// DoRA, as kernels/dora.rs: the rows of an adapted weight keep a direction and have their lengths trained.
#include "pieces.cuh"

typedef unsigned long long size;

// What each row of an adapted weight is multiplied by: m / n and 1 / n, with the row's norm n by
// n^2 = |w|^2 + 2 s b.(A w) + s^2 b.(A A' b). `across` is A W' [rank, out], `gram` A A' [rank, rank], B [out, rank]; a
// thread has a row. A row of zeros has no direction: it stays zero.
template <typename T>
__device__ __forceinline__ void dora_gains(const float* across, const float* gram, const T* b, const float* squares,
                                           const float* lengths, float scale, float* gains, float* inverses,
                                           unsigned out, unsigned rank) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= out) return;
    b += (size)row * rank;
    float sum = 0.0f;
    for (unsigned k = 0; k < rank; k++) {
        float turned = 0.0f;
        for (unsigned j = 0; j < rank; j++) turned += gram[k * rank + j] * widen(b[j]);
        sum += widen(b[k]) * (2.0f * scale * across[(size)k * out + row] + scale * scale * turned);
    }
    const float norm = sqrtf(fmaxf(squares[row] + sum, 0.0f));
    const float inverse = norm > 0.0f ? 1.0f / norm : 0.0f;
    gains[row] = lengths[row] * inverse;
    inverses[row] = inverse;
}
KERNEL(128, dora_gains_f32, (const float* across, const float* gram, const float* b, const float* squares,
                             const float* lengths, float scale, float* gains, float* inverses, unsigned out,
                             unsigned rank)) {
    dora_gains(across, gram, b, squares, lengths, scale, gains, inverses, out, rank);
}
KERNEL(128, dora_gains_bf16, (const float* across, const float* gram, const bf16* b, const float* squares,
                              const float* lengths, float scale, float* gains, float* inverses, unsigned out,
                              unsigned rank)) {
    dora_gains(across, gram, b, squares, lengths, scale, gains, inverses, out, rank);
}

// y = (gains + shift) * x, column by column, or added to y. A block has a row; rows lie `stride` apart. Without an x it
// is y itself.
template <typename T>
__device__ __forceinline__ void stretch(const T* x, size x_stride, const float* gains, float shift, T* y, size y_stride,
                                        int add, unsigned width) {
    y += blockIdx.x * y_stride;
    x = x ? x + blockIdx.x * x_stride : y;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = (gains[i] + shift) * widen(x[i]);
        y[i] = narrow<T>(add ? widen(y[i]) + value : value);
    }
}
KERNEL(256, stretch_f32, (const float* x, size x_stride, const float* gains, float shift, float* y, size y_stride,
                          int add, unsigned width)) {
    stretch(x, x_stride, gains, shift, y, y_stride, add, width);
}
KERNEL(256, stretch_bf16, (const bf16* x, size x_stride, const float* gains, float shift, bf16* y, size y_stride,
                           int add, unsigned width)) {
    stretch(x, x_stride, gains, shift, y, y_stride, add, width);
}

// The first half of the lengths' gradient, the sum over the rows of u * dy / n.
template <typename T>
__device__ __forceinline__ void length_partials(const T* u, const T* dy, size dy_stride, const float* inverses,
                                                float* partials, unsigned rows, unsigned piece, unsigned width) {
    sum_piece(partials, rows, piece, width, [=](unsigned row, unsigned column) {
        return widen(u[(size)row * width + column]) * widen(dy[row * dy_stride + column]) * inverses[column];
    });
}
KERNEL(256, length_partials_f32, (const float* u, const float* dy, size dy_stride, const float* inverses,
                                  float* partials, unsigned rows, unsigned piece, unsigned width)) {
    length_partials(u, dy, dy_stride, inverses, partials, rows, piece, width);
}
KERNEL(256, length_partials_bf16, (const bf16* u, const bf16* dy, size dy_stride, const float* inverses,
                                   float* partials, unsigned rows, unsigned piece, unsigned width)) {
    length_partials(u, dy, dy_stride, inverses, partials, rows, piece, width);
}
