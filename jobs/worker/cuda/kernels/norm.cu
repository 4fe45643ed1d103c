// RMSNorm, row by row, as kernels/norm.rs: y = x / sqrt(mean(x^2) + epsilon) * (weight + offset).
//
// A block has a row. Rows may be heads of tokens: row r is head r % heads of token r / heads, and a token's heads lie
// side by side in a row of `stride` values. What is not the model's own stream lies without gaps.
#include "pieces.cuh"

typedef unsigned long long size;

__device__ __forceinline__ size place(unsigned row, unsigned heads, size stride, unsigned width) {
    return row / heads * stride + (size)(row % heads) * width;
}

// Squares that overflow make the row NaN: training is seen to diverge, where a row of zeros would look like a stupid
// model.
__device__ __forceinline__ float inverse_root(float mean, float epsilon) {
    return mean == INFINITY ? nanf("") : 1.0f / sqrtf(mean + epsilon);
}

// Whether the values may be read by fours. Rows of heads may begin anywhere.
template <typename T>
__device__ __forceinline__ bool by_fours(const T* at, unsigned width) {
    return width % 4 == 0 && reinterpret_cast<size>(at) % (4 * sizeof(T)) == 0;
}

template <typename T>
__device__ __forceinline__ float inverse_rms(const T* x, unsigned width, float epsilon) {
    float sum = 0.0f;
    if (by_fours(x, width)) {
        for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            const float4 value = load4(x + i);
            sum += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
        }
        return inverse_root(block_sum(sum) / (float)width, epsilon);
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[i]);
        sum += value * value;
    }
    return inverse_root(block_sum(sum) / (float)width, epsilon);
}

template <typename T>
__device__ __forceinline__ void norm(const T* x, unsigned heads, size stride, const float* weight, float offset,
                                     float epsilon, T* y, unsigned width) {
    x += place(blockIdx.x, heads, stride, width);
    y += (size)blockIdx.x * width;
    const float inverse = inverse_rms(x, width, epsilon);
    if (by_fours(x, width) && by_fours(weight, width)) {
        for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            const float4 value = load4(x + i), w = load4(weight + i);
            store4(y + i, make_float4(value.x * inverse * (w.x + offset), value.y * inverse * (w.y + offset),
                                      value.z * inverse * (w.z + offset), value.w * inverse * (w.w + offset)));
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[i] = narrow<T>(widen(x[i]) * inverse * (weight[i] + offset));
}

KERNEL(256, norm_f32, (const float* x, unsigned heads, size stride, const float* weight, float offset, float epsilon,
                       float* y, unsigned width)) {
    norm(x, heads, stride, weight, offset, epsilon, y, width);
}
KERNEL(256, norm_bf16, (const bf16* x, unsigned heads, size stride, const float* weight, float offset, float epsilon,
                        bf16* y, unsigned width)) {
    norm(x, heads, stride, weight, offset, epsilon, y, width);
}

// What joins the stream, and the next norm of the sum, in one pass over both: sum = x + more, y = norm(sum).
template <typename T>
__device__ __forceinline__ void join_norm(const T* x, const T* more, const float* weight, float offset, float epsilon,
                                          T* sum, T* y, unsigned width) {
    const size row = (size)blockIdx.x * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        sum[row + i] = narrow<T>(widen(x[row + i]) + widen(more[row + i]));
        // As it is kept: the backward pass knows no other.
        const float value = widen(sum[row + i]);
        squares += value * value;
    }
    const float inverse = inverse_root(block_sum(squares) / (float)width, epsilon);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[row + i] = narrow<T>(widen(sum[row + i]) * inverse * (weight[i] + offset));
}

KERNEL(256, join_norm_f32, (const float* x, const float* more, const float* weight, float offset, float epsilon,
                            float* sum, float* y, unsigned width)) {
    join_norm(x, more, weight, offset, epsilon, sum, y, width);
}
KERNEL(256, join_norm_bf16, (const bf16* x, const bf16* more, const float* weight, float offset, float epsilon,
                             bf16* sum, bf16* y, unsigned width)) {
    join_norm(x, more, weight, offset, epsilon, sum, y, width);
}

// With g = dy * weight and r = 1 / rms: dx = r * (g - x * r^2 * mean(g * x)), added to what `dx` holds where `add` says
// so. `inverses` takes r of every row, for the weight's gradient; it may be null.
template <typename T>
__device__ __forceinline__ void norm_backward(const T* x, unsigned heads, size stride, const float* weight,
                                              float offset, float epsilon, const T* dy, T* dx, size dx_stride, int add,
                                              float* inverses, unsigned width) {
    x += place(blockIdx.x, heads, stride, width);
    dx += place(blockIdx.x, heads, dx_stride, width);
    dy += (size)blockIdx.x * width;
    const float inverse = inverse_rms(x, width, epsilon);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        sum += widen(dy[i]) * (weight[i] + offset) * widen(x[i]);
    const float share = block_sum(sum) * inverse * inverse / (float)width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float before = add ? widen(dx[i]) : 0.0f;
        dx[i] = narrow<T>(before + inverse * (widen(dy[i]) * (weight[i] + offset) - widen(x[i]) * share));
    }
    if (inverses && threadIdx.x == 0) inverses[blockIdx.x] = inverse;
}

KERNEL(256, norm_backward_f32,
       (const float* x, unsigned heads, size stride, const float* weight, float offset, float epsilon, const float* dy,
        float* dx, size dx_stride, int add, float* inverses, unsigned width)) {
    norm_backward(x, heads, stride, weight, offset, epsilon, dy, dx, dx_stride, add, inverses, width);
}
KERNEL(256, norm_backward_bf16,
       (const bf16* x, unsigned heads, size stride, const float* weight, float offset, float epsilon, const bf16* dy,
        bf16* dx, size dx_stride, int add, float* inverses, unsigned width)) {
    norm_backward(x, heads, stride, weight, offset, epsilon, dy, dx, dx_stride, add, inverses, width);
}

// The first half of the weight's gradient, the sum over the rows of dy * x / rms.
template <typename T>
__device__ __forceinline__ void norm_weight_partials(const T* x, unsigned heads, size stride, const float* inverses,
                                                     const T* dy, float* partials, unsigned rows, unsigned piece,
                                                     unsigned width) {
    sum_piece(partials, rows, piece, width, [=](unsigned row, unsigned column) {
        return widen(dy[(size)row * width + column]) * widen(x[place(row, heads, stride, width) + column]) * inverses[row];
    });
}

KERNEL(256, norm_weight_partials_f32,
       (const float* x, unsigned heads, size stride, const float* inverses, const float* dy, float* partials,
        unsigned rows, unsigned piece, unsigned width)) {
    norm_weight_partials(x, heads, stride, inverses, dy, partials, rows, piece, width);
}
KERNEL(256, norm_weight_partials_bf16,
       (const bf16* x, unsigned heads, size stride, const float* inverses, const bf16* dy, float* partials,
        unsigned rows, unsigned piece, unsigned width)) {
    norm_weight_partials(x, heads, stride, inverses, dy, partials, rows, piece, width);
}
