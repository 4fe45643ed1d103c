// CUDA C++ as drydock's kernels use it, for a compiler that knows C++ only. What a block's threads share and where they
// wait for each other is in threads.cpp: a thread is a fiber, and one CPU thread runs one block after the other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __constant__ static const
// One block runs at a time, from its beginning to its end.
#define __shared__ static
#define __restrict__ __restrict

struct uint3 {
    unsigned x, y, z;
};

namespace emulated {

struct Place {
    uint3 thread, block, threads, blocks;
    unsigned lane;
};

// Where the fiber that runs stands.
extern Place here;

void wait_for_block();
void wait_for_warp();
// Where this exchange's values lie, lane by lane; they can be read until the warp's next but one exchange.
unsigned char (*slots())[16];
// Whether that lane takes part in this exchange.
bool gave(unsigned lane);
[[noreturn]] void fault(int code, const char* why);
void* dynamic_shared();
template <typename T>
T exchange(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
    if (mask != 0xffffffffu) fault(719, "a shuffle's mask is not full");
    unsigned char (*all)[16] = slots();
    std::memcpy(all[here.lane], &value, sizeof value);
    wait_for_warp();
    if (!gave(source)) fault(719, "a shuffle asks a lane that is not there");
    std::memcpy(&value, all[source], sizeof value);
    return value;
}

struct Parameters {
    unsigned count;
    unsigned short sizes[32];
};

struct Kernel {
    const char* name;
    unsigned most_threads;
    Parameters parameters;
    void (*call)(void (*function)(), void** arguments);
    void (*function)();
    Kernel* next;
};

extern Kernel* kernels;

template <typename... A>
struct Signature {
    template <std::size_t... I>
    static void apply(void (*function)(), void** arguments, std::index_sequence<I...>) {
        reinterpret_cast<void (*)(A...)>(function)(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
    }
    static void call(void (*function)(), void** arguments) {
        apply(function, arguments, std::index_sequence_for<A...>{});
    }
};

template <typename... A>
struct Registered : Kernel {
    Registered(const char* name, unsigned most_threads, void (*function)(A...))
        : Kernel{name, most_threads, {sizeof...(A), {sizeof(A)...}}, Signature<A...>::call,
                 reinterpret_cast<void (*)()>(function), kernels} {
        kernels = this;
    }
};

}  // namespace emulated

#define threadIdx (::emulated::here.thread)
#define blockIdx (::emulated::here.block)
#define blockDim (::emulated::here.threads)
#define gridDim (::emulated::here.blocks)
constexpr int warpSize = 32;

#define KERNEL(threads, name, arguments)                                   \
    extern "C" void name arguments;                                        \
    static emulated::Registered name##_registered(#name, threads, name);   \
    extern "C" void name arguments

#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulated::dynamic_shared())

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::wait_for_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// As on a GPU, a source outside of the lane's group of `width` is the lane itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = emulated::here.lane;
    return emulated::exchange(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned lane = emulated::here.lane, source = lane ^ bits;
    return emulated::exchange(mask, value, source >= (lane & ~(width - 1)) + width ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emulated::here.lane;
    return emulated::exchange(mask, value, (lane & (width - 1)) + by >= unsigned(width) ? lane : lane + by);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emulated::here.lane;
    return emulated::exchange(mask, value, (lane & (width - 1)) < by ? lane : lane - by);
}
inline unsigned __ballot_sync(unsigned mask, int holds) {
    unsigned all = 0;
    const unsigned mine = holds ? 1u << emulated::here.lane : 0;
    for (unsigned lane = 0; lane < 32; lane++) all |= __shfl_sync(mask, mine, lane);
    return all;
}
inline int __any_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) != 0; }
inline int __all_sync(unsigned mask, int holds) { return __ballot_sync(mask, !holds) == 0; }

// One CPU thread runs everything, and fibers change at barriers only: nothing can come between.
template <typename T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = before + value;
    return before;
}
template <typename T>
T atomicMax(T* at, T value) {
    const T before = *at;
    *at = before < value ? value : before;
    return before;
}
template <typename T>
T atomicExch(T* at, T value) {
    const T before = *at;
    *at = value;
    return before;
}
inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
    const unsigned before = *at;
    if (before == expected) *at = value;
    return before;
}

template <typename T>
T __ldg(const T* at) { return *at; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline void sincosf(float x, float* sine, float* cosine) { *sine = std::sin(x); *cosine = std::cos(x); }
template <typename T>
constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T>
constexpr T max(T a, T b) { return a < b ? b : a; }

struct __nv_bfloat16 {
    unsigned short bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const unsigned bits = __float_as_uint(value);
    if (std::isnan(value)) return {0x7fff};
    return {(unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 two) { return __floats2bfloat162_rn(two.x, two.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 two) { return {__bfloat162float(two.x), __bfloat162float(two.y)}; }
inline float __low2float(__nv_bfloat162 two) { return __bfloat162float(two.x); }
inline float __high2float(__nv_bfloat162 two) { return __bfloat162float(two.y); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
struct __half {
    unsigned short bits;
};
inline float __half2float(__half value) {
    const unsigned sign = unsigned(value.bits & 0x8000) << 16, exponent = (value.bits >> 10) & 31, mantissa = value.bits & 1023;
    const float size = exponent == 0    ? std::ldexp(float(mantissa), -24)
                       : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                        : std::ldexp(float(mantissa | 1024), int(exponent) - 25);
    return __uint_as_float(__float_as_uint(size) | sign);
}
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
