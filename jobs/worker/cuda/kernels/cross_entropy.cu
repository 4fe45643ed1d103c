// The loss and its gradient while the logits of some tokens are at hand, as kernels/cross_entropy.rs.
#include "drydock.cuh"

typedef unsigned long long size;

__device__ __forceinline__ float bent(float logit, float cap) { return cap > 0.0f ? cap * tanhf(logit / cap) : logit; }

// A block has a token: its logits [vocabulary] give the negative log likelihood of its target and, where `dlogits` is
// not null, their gradient times the target's scale: (p - 1 at the target) * the softcap's slope.
template <typename T>
__device__ __forceinline__ void cross_entropy(const float* logits, const unsigned* targets, const float* scales,
                                              float cap, float* losses, T* dlogits, unsigned vocabulary) {
    logits += (size)blockIdx.x * vocabulary;
    const unsigned target = targets[blockIdx.x];
    float most = -INFINITY;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, bent(logits[i], cap));
    most = block_max(most);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(bent(logits[i], cap) - most);
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) - (bent(logits[target], cap) - most);
    if (!dlogits) return;
    dlogits += (size)blockIdx.x * vocabulary;
    const float inverse = 1.0f / sum, scale = scales[blockIdx.x];
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        const float y = bent(logits[i], cap);
        float d = expf(y - most) * inverse - (i == target ? 1.0f : 0.0f);
        if (cap > 0.0f) d *= 1.0f - y / cap * (y / cap);
        dlogits[i] = narrow<T>(d * scale);
    }
}
KERNEL(512, cross_entropy_f32, (const float* logits, const unsigned* targets, const float* scales, float cap,
                                float* losses, float* dlogits, unsigned vocabulary)) {
    cross_entropy(logits, targets, scales, cap, losses, dlogits, vocabulary);
}
KERNEL(512, cross_entropy_bf16, (const float* logits, const unsigned* targets, const float* scales, float cap,
                                 float* losses, bf16* dlogits, unsigned vocabulary)) {
    cross_entropy(logits, targets, scales, cap, losses, dlogits, vocabulary);
}
