// One step of AdamW, as kernels/adamw.rs, in one pass over values, gradients and moments; where products are computed
// in bf16, the copy that they take is written in the same pass.
#include "drydock.cuh"

typedef unsigned long long size;

KERNEL(256, adamw, (float* values, bf16* copy, const float* gradient, float* first, float* second, float beta1,
                    float beta2, float epsilon, float gradient_scale, float decay, float rate, float second_scale,
                    size count)) {
    const size step = (size)gridDim.x * blockDim.x;
    for (size i = (size)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float g = gradient[i] * gradient_scale;
        const float m = first[i] * beta1 + g * (1.0f - beta1);
        const float v = second[i] * beta2 + g * g * (1.0f - beta2);
        const float value = values[i] * decay - rate * m / (sqrtf(v) * second_scale + epsilon);
        first[i] = m;
        second[i] = v;
        values[i] = value;
        if (copy) copy[i] = narrow<bf16>(value);
    }
}
