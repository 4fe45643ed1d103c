// Small things that are done to rows: sums, biases, dropout, and rows that are taken and put.
#include "pieces.cuh"

typedef unsigned long long size;

#define FOR_EACH(index, count)                                                                        \
    for (size index = (size)blockIdx.x * blockDim.x + threadIdx.x, step = (size)gridDim.x * blockDim.x; \
         index < (count); index += step)

// y += x
template <typename T>
__device__ __forceinline__ void add(const T* x, T* y, size count) {
    FOR_EACH(i, count / 4) {
        const float4 a = load4(x + 4 * i), b = load4(y + 4 * i);
        store4(y + 4 * i, make_float4(b.x + a.x, b.y + a.y, b.z + a.z, b.w + a.w));
    }
    FOR_EACH(i, count % 4) {
        const size last = count / 4 * 4 + i;
        y[last] = narrow<T>(widen(y[last]) + widen(x[last]));
    }
}
KERNEL(256, add_f32, (const float* x, float* y, size count)) { add(x, y, count); }
KERNEL(256, add_bf16, (const bf16* x, bf16* y, size count)) { add(x, y, count); }

// A bias [width] on every row of y, whose rows lie `stride` apart (kernels/bias.rs). A block has a row.
template <typename T>
__device__ __forceinline__ void add_bias(T* y, size stride, const float* bias, unsigned width) {
    y += blockIdx.x * stride;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) y[i] = narrow<T>(widen(y[i]) + bias[i]);
}
KERNEL(256, add_bias_f32, (float* y, size stride, const float* bias, unsigned width)) {
    add_bias(y, stride, bias, width);
}
KERNEL(256, add_bias_bf16, (bf16* y, size stride, const float* bias, unsigned width)) {
    add_bias(y, stride, bias, width);
}

// The first half of a bias's gradient.
template <typename T>
__device__ __forceinline__ void column_partials(const T* x, size stride, float* partials, unsigned rows, unsigned piece,
                                                unsigned width) {
    sum_piece(partials, rows, piece, width, [=](unsigned row, unsigned column) { return widen(x[row * stride + column]); });
}
KERNEL(256, column_partials_f32, (const float* x, size stride, float* partials, unsigned rows, unsigned piece,
                                  unsigned width)) {
    column_partials(x, stride, partials, rows, piece, width);
}
KERNEL(256, column_partials_bf16, (const bf16* x, size stride, float* partials, unsigned rows, unsigned piece,
                                   unsigned width)) {
    column_partials(x, stride, partials, rows, piece, width);
}

// The second half: sums [width] += the sum of the pieces [pieces, width], one after the other.
KERNEL(256, sum_partials, (const float* partials, float* sums, unsigned pieces, unsigned width)) {
    FOR_EACH(column, width) {
        float sum = 0.0f;
        for (unsigned piece = 0; piece < pieces; piece++) sum += partials[(size)piece * width + column];
        sums[column] += sum;
    }
}

// The sum of the squares of each block's part of x, made in f64; the host sums the parts in their order.
KERNEL(256, squares, (const float* x, float* sums, size count, size piece)) {
    const size from = blockIdx.x * piece;
    const size to = from + piece < count ? from + piece : count;
    double sum = 0.0;
    for (size i = from + threadIdx.x; i < to; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    __shared__ double of_threads[256];
    of_threads[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = (float)of_threads[0];
}

// The finaliser of SplitMix64, as kernels/linear.rs has it.
__device__ __forceinline__ size mix(size x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// What dropout multiplies the value at this place by: a function of the seed and the place, the CPU's own.
__device__ __forceinline__ float dropout_factor(size seed, float rate, size index) {
    const float chance = (float)(mix(seed ^ mix(index)) >> 40) / 16777216.0f;
    return chance >= rate ? 1.0f / (1.0f - rate) : 0.0f;
}

// y = drop(x), or y += drop(x), which is its backward pass; the first value has the place `first`.
template <typename T>
__device__ __forceinline__ void dropout(const T* x, T* y, size seed, size first, float rate, int add, size count) {
    FOR_EACH(i, count) {
        const float value = widen(x[i]) * dropout_factor(seed, rate, first + i);
        y[i] = narrow<T>(add ? widen(y[i]) + value : value);
    }
}
KERNEL(256, dropout_f32, (const float* x, float* y, size seed, size first, float rate, int add, size count)) {
    dropout(x, y, seed, first, rate, add, count);
}
KERNEL(256, dropout_bf16, (const bf16* x, bf16* y, size seed, size first, float rate, int add, size count)) {
    dropout(x, y, seed, first, rate, add, count);
}

// Row i of y is row places[i] of x, times scale. A block has a row.
template <typename T>
__device__ __forceinline__ void take_rows(const T* x, const unsigned* places, T* y, float scale, unsigned width) {
    x += (size)places[blockIdx.x] * width;
    y += (size)blockIdx.x * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[i] = scale == 1.0f ? x[i] : narrow<T>(widen(x[i]) * scale);
}
KERNEL(256, take_rows_f32, (const float* x, const unsigned* places, float* y, float scale, unsigned width)) {
    take_rows(x, places, y, scale, width);
}
KERNEL(256, take_rows_bf16, (const bf16* x, const unsigned* places, bf16* y, float scale, unsigned width)) {
    take_rows(x, places, y, scale, width);
}

// Row places[i] of y is row i of x; no place comes twice. A block has a row.
template <typename T>
__device__ __forceinline__ void put_rows(const T* x, const unsigned* places, T* y, unsigned width) {
    x += (size)blockIdx.x * width;
    y += (size)places[blockIdx.x] * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) y[i] = x[i];
}
KERNEL(256, put_rows_f32, (const float* x, const unsigned* places, float* y, unsigned width)) {
    put_rows(x, places, y, width);
}
KERNEL(256, put_rows_bf16, (const bf16* x, const unsigned* places, bf16* y, unsigned width)) {
    put_rows(x, places, y, width);
}

// The gradient of taking rows of a table: block (i, .) sums the rows of dx that took row ids[i], which are those that
// order[starts[i] .. starts[i + 1]] names, one after the other, as the CPU does.
template <typename T>
__device__ __forceinline__ void table_backward(const T* dx, const unsigned* ids, const unsigned* starts,
                                               const unsigned* order, float scale, float* dtable, unsigned width) {
    const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = dtable[(size)ids[blockIdx.x] * width + column];
    for (unsigned i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++)
        sum += widen(dx[(size)order[i] * width + column]) * scale;
    dtable[(size)ids[blockIdx.x] * width + column] = sum;
}
KERNEL(256, table_backward_f32, (const float* dx, const unsigned* ids, const unsigned* starts, const unsigned* order,
                                 float scale, float* dtable, unsigned width)) {
    table_backward(dx, ids, starts, order, scale, dtable, width);
}
KERNEL(256, table_backward_bf16, (const bf16* dx, const unsigned* ids, const unsigned* starts, const unsigned* order,
                                  float scale, float* dtable, unsigned width)) {
    table_backward(dx, ids, starts, order, scale, dtable, width);
}
