// What every kernel is written with. Included first by every file in this folder.
//
// The same source is compiled by nvcc for GPUs, and, where EMULATED_GPU is defined, by the host's C++ compiler for the
// tests' GPU made of a CPU (tests/emulated_gpu). So that both compilers and both machines mean the same:
//   - a kernel begins with KERNEL(threads, name, (arguments)); `threads` is the most that a block of it may have, and is
//     a multiple of 32. Arguments are pointers, int, unsigned, float, long long and unsigned long long;
//   - shared memory is `__shared__ type name[N]`, or DYNAMIC_SHARED(type, name) where the launch says how much;
//   - every thread of a block reaches every __syncthreads(), every lane of a warp every shuffle, and masks are full;
//   - sums are made in an order that does not depend on time: no atomicAdd of floats where the sum is seen. A training
//     repeated is the same training, bit for bit.
#pragma once

#ifdef EMULATED_GPU
#include "language.h"
#else
#include <cuda_bf16.h>

#define KERNEL(threads, name, arguments) extern "C" __global__ void __launch_bounds__(threads) name arguments

#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];  \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

using bf16 = __nv_bfloat16;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Arithmetic is f32 whatever the values are held in.
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 value) { return __bfloat162float(value); }

// Rounds to nearest, ties to even, as the CPU's kernels do.
template <typename T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) { return value; }
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float value) { return __float2bfloat16_rn(value); }

// Four values that lie side by side, read or written at once: 16 bytes of f32, 8 of bf16. The address is a multiple of
// that; every buffer begins at one.
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ float4 load4(const bf16* from) {
    struct alignas(8) Four {
        bf16 values[4];
    };
    const Four four = *reinterpret_cast<const Four*>(from);
    return make_float4(widen(four.values[0]), widen(four.values[1]), widen(four.values[2]), widen(four.values[3]));
}

__device__ __forceinline__ void store4(float* to, float4 four) { *reinterpret_cast<float4*>(to) = four; }
__device__ __forceinline__ void store4(bf16* to, float4 four) {
    struct alignas(8) Four {
        bf16 values[4];
    };
    *reinterpret_cast<Four*>(to) = Four{{narrow<bf16>(four.x), narrow<bf16>(four.y), narrow<bf16>(four.z), narrow<bf16>(four.w)}};
}

// The same sum in every lane of a warp.
__device__ __forceinline__ float warp_sum(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

// The same sum in every thread of a block of one dimension. May be called again at once.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warps[WARP];
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    value = threadIdx.x % WARP < blockDim.x / WARP ? of_warps[threadIdx.x % WARP] : 0.0f;
    // Nobody writes the next sum's part before all have read this one's.
    __syncthreads();
    return warp_sum(value);
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float of_warps[WARP];
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    // Any of the values does for the lanes that no warp stands for.
    value = of_warps[threadIdx.x % WARP < blockDim.x / WARP ? threadIdx.x % WARP : 0];
    __syncthreads();
    return warp_max(value);
}
