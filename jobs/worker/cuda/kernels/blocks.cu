// Frozen weights that lie in the blocks of a file (blocks/legacy.rs, blocks/super_block.rs say how), widened for a
// product. A thread has a value; what its neighbours read of the same block comes from the cache.
#include "drydock.cuh"

typedef unsigned long long size;
typedef unsigned char byte;

__device__ __forceinline__ float half_at(const byte* at) {
    const unsigned half = at[0] | at[1] << 8;
    const unsigned sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 5.9604644775390625e-8f;
    const unsigned bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Blocks of 32 values.
__device__ __forceinline__ unsigned nibble(const byte* codes, unsigned i) {
    return i < 16 ? codes[i] & 15 : codes[i - 16] >> 4;
}
__device__ __forceinline__ unsigned fifth(const byte* plane, unsigned i) { return plane[i / 8] >> (i % 8) & 1; }

struct Q4_0 {
    static constexpr unsigned LEN = 32, BYTES = 18;
    static __device__ float value(const byte* b, unsigned i) { return (float)((int)nibble(b + 2, i) - 8) * half_at(b); }
};
struct Q4_1 {
    static constexpr unsigned LEN = 32, BYTES = 20;
    static __device__ float value(const byte* b, unsigned i) {
        return (float)nibble(b + 4, i) * half_at(b) + half_at(b + 2);
    }
};
struct Q5_0 {
    static constexpr unsigned LEN = 32, BYTES = 22;
    static __device__ float value(const byte* b, unsigned i) {
        return (float)((int)(nibble(b + 6, i) | fifth(b + 2, i) << 4) - 16) * half_at(b);
    }
};
struct Q5_1 {
    static constexpr unsigned LEN = 32, BYTES = 24;
    static __device__ float value(const byte* b, unsigned i) {
        return (float)(nibble(b + 8, i) | fifth(b + 4, i) << 4) * half_at(b) + half_at(b + 2);
    }
};
struct Q8_0 {
    static constexpr unsigned LEN = 32, BYTES = 34;
    static __device__ float value(const byte* b, unsigned i) { return (float)(signed char)b[2 + i] * half_at(b); }
};

// Super-blocks of 256 values.
__device__ __forceinline__ unsigned two_bits(const byte* codes, unsigned i) {
    return codes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
}
__device__ __forceinline__ unsigned nibble_of(const byte* codes, unsigned i, unsigned stride) {
    const unsigned in_group = i % (2 * stride), code = codes[i / (2 * stride) * stride + in_group % stride];
    return in_group < stride ? code & 15 : code >> 4;
}
__device__ __forceinline__ unsigned in_plane(const byte* plane, unsigned i) { return plane[i % 32] >> (i / 32) & 1; }
// scale * s * code - min * m, with s and m in six bits.
__device__ __forceinline__ float graded(const byte* b, unsigned sub, unsigned code) {
    const byte* packed = b + 4;
    const unsigned j = sub % 4, low_s = packed[j], low_m = packed[j + 4], both = packed[j + 8];
    const unsigned s = sub < 4 ? low_s & 63 : (both & 15) | low_s >> 6 << 4;
    const unsigned m = sub < 4 ? low_m & 63 : both >> 4 | low_m >> 6 << 4;
    return half_at(b) * (float)s * (float)code - half_at(b + 2) * (float)m;
}

struct Q2_K {
    static constexpr unsigned LEN = 256, BYTES = 84;
    static __device__ float value(const byte* b, unsigned i) {
        const unsigned both = b[i / 16];
        return half_at(b + 80) * (float)(both & 15) * (float)two_bits(b + 16, i) - half_at(b + 82) * (float)(both >> 4);
    }
};
struct Q3_K {
    static constexpr unsigned LEN = 256, BYTES = 110;
    static __device__ float value(const byte* b, unsigned i) {
        const unsigned sub = i / 16, code = two_bits(b + 32, i) | in_plane(b, i) << 2;
        const byte* packed = b + 96;
        const unsigned low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
        const unsigned high = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        return half_at(b + 108) * (float)((int)(low | high << 4) - 32) * (float)((int)code - 4);
    }
};
struct Q4_K {
    static constexpr unsigned LEN = 256, BYTES = 144;
    static __device__ float value(const byte* b, unsigned i) { return graded(b, i / 32, nibble_of(b + 16, i, 32)); }
};
struct Q5_K {
    static constexpr unsigned LEN = 256, BYTES = 176;
    static __device__ float value(const byte* b, unsigned i) {
        return graded(b, i / 32, nibble_of(b + 48, i, 32) | in_plane(b + 16, i) << 4);
    }
};
struct Q6_K {
    static constexpr unsigned LEN = 256, BYTES = 210;
    static __device__ float value(const byte* b, unsigned i) {
        const unsigned code = nibble_of(b, i, 64) | two_bits(b + 128, i) << 4;
        return half_at(b + 208) * (float)(signed char)b[192 + i / 16] * (float)((int)code - 32);
    }
};

template <typename Block, typename T>
__device__ __forceinline__ void widen_blocks(const byte* blocks, T* values, size count) {
    const size step = (size)gridDim.x * blockDim.x;
    for (size i = (size)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        values[i] = narrow<T>(Block::value(blocks + i / Block::LEN * Block::BYTES, i % Block::LEN));
}

#define WIDEN(name, Block)                                                                       \
    KERNEL(256, widen_##name##_f32, (const byte* blocks, float* values, size count)) {           \
        widen_blocks<Block>(blocks, values, count);                                              \
    }                                                                                            \
    KERNEL(256, widen_##name##_bf16, (const byte* blocks, bf16* values, size count)) {           \
        widen_blocks<Block>(blocks, values, count);                                              \
    }
WIDEN(q4_0, Q4_0)
WIDEN(q4_1, Q4_1)
WIDEN(q5_0, Q5_0)
WIDEN(q5_1, Q5_1)
WIDEN(q8_0, Q8_0)
WIDEN(q2_k, Q2_K)
WIDEN(q3_k, Q3_K)
WIDEN(q4_k, Q4_K)
WIDEN(q5_k, Q5_K)
WIDEN(q6_k, Q6_K)
