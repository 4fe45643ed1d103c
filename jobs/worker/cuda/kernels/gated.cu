// Gated activations, as kernels/gated.rs: y = activation(gate) * up. Gate and up lie side by side in rows of 2 * width,
// as the one product that makes both leaves them.
#include "drydock.cuh"

typedef unsigned long long size;

struct Slope {
    float y, slope;
};

__device__ __forceinline__ Slope silu(float x) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    const float y = x * sigmoid;
    return {y, sigmoid + y * (1.0f - sigmoid)};
}

// GELU with the usual approximation by tanh.
__device__ __forceinline__ Slope gelu_tanh(float x) {
    const float slope = 0.7978846f, cube = 0.044715f, square = x * x;
    const float t = tanhf(slope * x * (1.0f + cube * square));
    return {0.5f * x * (1.0f + t),
            0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope * (1.0f + 3.0f * cube * square)};
}

__device__ __forceinline__ Slope activate(int gelu, float x) { return gelu ? gelu_tanh(x) : silu(x); }

template <typename T>
__device__ __forceinline__ void gate(int gelu, const T* gate_up, T* y, size rows, unsigned width) {
    const size count = rows * width, step = (size)gridDim.x * blockDim.x;
    for (size i = (size)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const T* row = gate_up + i / width * 2 * width + i % width;
        y[i] = narrow<T>(activate(gelu, widen(row[0])).y * widen(row[width]));
    }
}
KERNEL(256, gate_f32, (int gelu, const float* gate_up, float* y, size rows, unsigned width)) {
    gate(gelu, gate_up, y, rows, width);
}
KERNEL(256, gate_bf16, (int gelu, const bf16* gate_up, bf16* y, size rows, unsigned width)) {
    gate(gelu, gate_up, y, rows, width);
}

// The gradients of both take the place of what they are gradients of.
template <typename T>
__device__ __forceinline__ void gate_backward(int gelu, const T* dy, T* gate_up, size rows, unsigned width) {
    const size count = rows * width, step = (size)gridDim.x * blockDim.x;
    for (size i = (size)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        T* row = gate_up + i / width * 2 * width + i % width;
        const Slope activated = activate(gelu, widen(row[0]));
        const float d = widen(dy[i]), up = widen(row[width]);
        row[0] = narrow<T>(d * up * activated.slope);
        row[width] = narrow<T>(d * activated.y);
    }
}
KERNEL(256, gate_backward_f32, (int gelu, const float* dy, float* gate_up, size rows, unsigned width)) {
    gate_backward(gelu, dy, gate_up, rows, width);
}
KERNEL(256, gate_backward_bf16, (int gelu, const bf16* dy, bf16* gate_up, size rows, unsigned width)) {
    gate_backward(gelu, dy, gate_up, rows, width);
}
