// One step of AdamW, as kernels/adamw.rs, in one pass over values, gradients and moments; where products are computed
// in bf16, the copy that they take is written in the same pass.
#include "drydock.cuh"

typedef unsigned long long size;

struct Coefficients {
    float beta1, beta2, epsilon, gradient_scale, decay, rate, second_scale;
};

__device__ __forceinline__ void update(const Coefficients& c, float gradient, float& value, float& first, float& second) {
    const float g = gradient * c.gradient_scale;
    first = first * c.beta1 + g * (1.0f - c.beta1);
    second = second * c.beta2 + g * g * (1.0f - c.beta2);
    value = value * c.decay - c.rate * first / (sqrtf(second) * c.second_scale + c.epsilon);
}

__device__ __forceinline__ bool begins_with_four(const void* at, unsigned bytes) {
    return reinterpret_cast<size>(at) % (4 * bytes) == 0;
}

KERNEL(256, adamw, (float* values, bf16* copy, const float* gradient, float* first, float* second, float beta1,
                    float beta2, float epsilon, float gradient_scale, float decay, float rate, float second_scale,
                    size count)) {
    const Coefficients c = {beta1, beta2, epsilon, gradient_scale, decay, rate, second_scale};
    const size begin = (size)blockIdx.x * blockDim.x + threadIdx.x, step = (size)gridDim.x * blockDim.x;
    // A stretch of a group may begin anywhere; in all four of the f32 buffers it is the same place.
    const bool fours = begins_with_four(values, 4) && begins_with_four(copy, 2);
    const size whole = fours ? count / 4 : 0;
    for (size i = begin; i < whole; i += step) {
        const float4 g = load4(gradient + 4 * i);
        float4 value = load4(values + 4 * i), m = load4(first + 4 * i), v = load4(second + 4 * i);
        update(c, g.x, value.x, m.x, v.x);
        update(c, g.y, value.y, m.y, v.y);
        update(c, g.z, value.z, m.z, v.z);
        update(c, g.w, value.w, m.w, v.w);
        store4(values + 4 * i, value);
        store4(first + 4 * i, m);
        store4(second + 4 * i, v);
        if (copy) store4(copy + 4 * i, value);
    }
    for (size i = 4 * whole + begin; i < count; i += step) {
        float value = values[i], m = first[i], v = second[i];
        update(c, gradient[i], value, m, v);
        values[i] = value;
        first[i] = m;
        second[i] = v;
        if (copy) copy[i] = narrow<bf16>(value);
    }
}
