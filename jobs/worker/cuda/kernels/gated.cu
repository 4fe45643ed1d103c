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

// A block has a row. Rows whose width is a multiple of four begin where four values may be read at once.
template <typename T>
__device__ __forceinline__ void gate(int gelu, const T* gate_up, T* y, unsigned width) {
    gate_up += (size)blockIdx.x * 2 * width;
    y += (size)blockIdx.x * width;
    if (width % 4 == 0) {
        for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            const float4 g = load4(gate_up + i), up = load4(gate_up + width + i);
            store4(y + i, make_float4(activate(gelu, g.x).y * up.x, activate(gelu, g.y).y * up.y,
                                      activate(gelu, g.z).y * up.z, activate(gelu, g.w).y * up.w));
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[i] = narrow<T>(activate(gelu, widen(gate_up[i])).y * widen(gate_up[width + i]));
}
KERNEL(256, gate_f32, (int gelu, const float* gate_up, float* y, unsigned width)) {
    gate(gelu, gate_up, y, width);
}
KERNEL(256, gate_bf16, (int gelu, const bf16* gate_up, bf16* y, unsigned width)) {
    gate(gelu, gate_up, y, width);
}

// The gradients of both take the place of what they are gradients of.
__device__ __forceinline__ void slopes(int gelu, float dy, float& gate, float& up) {
    const Slope activated = activate(gelu, gate);
    gate = dy * up * activated.slope;
    up = dy * activated.y;
}

template <typename T>
__device__ __forceinline__ void gate_backward(int gelu, const T* dy, T* gate_up, unsigned width) {
    gate_up += (size)blockIdx.x * 2 * width;
    dy += (size)blockIdx.x * width;
    if (width % 4 == 0) {
        for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            const float4 d = load4(dy + i);
            float4 g = load4(gate_up + i), up = load4(gate_up + width + i);
            slopes(gelu, d.x, g.x, up.x);
            slopes(gelu, d.y, g.y, up.y);
            slopes(gelu, d.z, g.z, up.z);
            slopes(gelu, d.w, g.w, up.w);
            store4(gate_up + i, g);
            store4(gate_up + width + i, up);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float g = widen(gate_up[i]), up = widen(gate_up[width + i]);
        slopes(gelu, widen(dy[i]), g, up);
        gate_up[i] = narrow<T>(g);
        gate_up[width + i] = narrow<T>(up);
    }
}
KERNEL(256, gate_backward_f32, (int gelu, const float* dy, float* gate_up, unsigned width)) {
    gate_backward(gelu, dy, gate_up, width);
}
KERNEL(256, gate_backward_bf16, (int gelu, const bf16* dy, bf16* gate_up, unsigned width)) {
    gate_backward(gelu, dy, gate_up, width);
}
