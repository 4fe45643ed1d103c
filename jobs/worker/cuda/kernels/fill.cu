// Values that are the same, and values in another form.
#include "drydock.cuh"

// One value of a row after the other, by as many threads as there are: no grid is too small.
template <typename From, typename To>
__device__ __forceinline__ void convert(const From* from, To* to, unsigned long long count) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        to[i] = narrow<To>(widen(from[i]));
}

KERNEL(256, narrow_f32, (const float* from, bf16* to, unsigned long long count)) { convert(from, to, count); }

KERNEL(256, widen_bf16, (const bf16* from, float* to, unsigned long long count)) { convert(from, to, count); }

KERNEL(256, fill_f32, (float* values, float value, unsigned long long count)) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        values[i] = value;
}
