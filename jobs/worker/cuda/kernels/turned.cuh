// How heads turn to their positions, as kernels/rope.rs.
#pragma once
#include "drydock.cuh"

// Value `i` of a head that turns by the angle at `angle`: of the first 2 * half values, i turns together with i + half;
// the others pass. `sign` is -1 to turn back.
template <typename T>
__device__ __forceinline__ float turned(const T* x, unsigned i, const float* cosines, const float* sines,
                                        unsigned long long angle, unsigned half, float sign, float scale) {
    if (i >= 2 * half) return widen(x[i]) * scale;
    const unsigned long long at = angle * half + i % half;
    const float c = cosines[at], s = sines[at] * sign;
    return i < half ? widen(x[i]) * scale * c - widen(x[i + half]) * scale * s
                    : widen(x[i]) * scale * c + widen(x[i - half]) * scale * s;
}
