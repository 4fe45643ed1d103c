// What attention is made of besides products, as kernels/attention.rs and kernels/rope.rs: heads that are turned to
// their positions, and the softmax of a block of queries over the keys that they see.
//
// Products want the heads that share their keys below one another: there, `heads` is [kv heads, tokens, group, dim],
// where `group` query heads share a kv head (for keys, group is 1). Elsewhere, a token's heads lie side by side in a row
// of `stride` values.
#include "turned.cuh"

typedef unsigned long long size;

// From a token's row to heads; a block has a token. angles[token] says which row of the tables turns it; where half is 0,
// nothing turns.
template <typename T>
__device__ __forceinline__ void to_heads(const T* x, size stride, const float* cosines, const float* sines,
                                         const unsigned* angles, float scale, T* heads, unsigned tokens,
                                         unsigned kv_heads, unsigned group, unsigned dim, unsigned half) {
    const unsigned token = blockIdx.x, angle = angles[token];
    x += token * stride;
    for (unsigned at = threadIdx.x; at < kv_heads * group * dim; at += blockDim.x) {
        const unsigned i = at % dim, head = at / dim, member = head % group, kv = head / group;
        heads[(((size)kv * tokens + token) * group + member) * dim + i] =
            narrow<T>(turned(x + head * dim, i, cosines, sines, angle, half, 1.0f, scale));
    }
}
KERNEL(256, to_heads_f32, (const float* x, size stride, const float* cosines, const float* sines, const unsigned* angles,
                           float scale, float* heads, unsigned tokens, unsigned kv_heads, unsigned group, unsigned dim,
                           unsigned half)) {
    to_heads(x, stride, cosines, sines, angles, scale, heads, tokens, kv_heads, group, dim, half);
}
KERNEL(256, to_heads_bf16, (const bf16* x, size stride, const float* cosines, const float* sines, const unsigned* angles,
                            float scale, bf16* heads, unsigned tokens, unsigned kv_heads, unsigned group, unsigned dim,
                            unsigned half)) {
    to_heads(x, stride, cosines, sines, angles, scale, heads, tokens, kv_heads, group, dim, half);
}

// And back: the way of the results, and of the gradients, which are turned back.
template <typename From, typename T>
__device__ __forceinline__ void from_heads(const From* heads, const float* cosines, const float* sines,
                                           const unsigned* angles, float scale, T* x, size stride, unsigned tokens,
                                           unsigned kv_heads, unsigned group, unsigned dim, unsigned half) {
    const unsigned token = blockIdx.x, angle = angles[token];
    x += token * stride;
    for (unsigned at = threadIdx.x; at < kv_heads * group * dim; at += blockDim.x) {
        const unsigned i = at % dim, head = at / dim, member = head % group, kv = head / group;
        const From* from = heads + (((size)kv * tokens + token) * group + member) * dim;
        x[at] = narrow<T>(turned(from, i, cosines, sines, angle, half, -1.0f, scale));
    }
}
KERNEL(256, from_heads_f32_f32, (const float* heads, const float* cosines, const float* sines, const unsigned* angles,
                                 float scale, float* x, size stride, unsigned tokens, unsigned kv_heads, unsigned group,
                                 unsigned dim, unsigned half)) {
    from_heads(heads, cosines, sines, angles, scale, x, stride, tokens, kv_heads, group, dim, half);
}
KERNEL(256, from_heads_f32_bf16, (const float* heads, const float* cosines, const float* sines, const unsigned* angles,
                                  float scale, bf16* x, size stride, unsigned tokens, unsigned kv_heads, unsigned group,
                                  unsigned dim, unsigned half)) {
    from_heads(heads, cosines, sines, angles, scale, x, stride, tokens, kv_heads, group, dim, half);
}
KERNEL(256, from_heads_bf16_bf16, (const bf16* heads, const float* cosines, const float* sines, const unsigned* angles,
                                   float scale, bf16* x, size stride, unsigned tokens, unsigned kv_heads, unsigned group,
                                   unsigned dim, unsigned half)) {
    from_heads(heads, cosines, sines, angles, scale, x, stride, tokens, kv_heads, group, dim, half);
}

// A block has one head of one query: its scores over the keys [first_key, first_key + keys) become probabilities. The
// first of `queries` stands at position first_query; it sees the keys up to its own, and `window` of them at most where
// there is a window. Scores are bent to lie within a softcap where there is one. The grid is kv heads * queries * group.
template <typename T>
__device__ __forceinline__ void attend(const float* scores, T* p, unsigned first_key, unsigned keys,
                                       unsigned first_query, unsigned queries, unsigned group, unsigned window,
                                       float cap) {
    scores += (size)blockIdx.x * keys;
    p += (size)blockIdx.x * keys;
    const unsigned position = first_query + blockIdx.x / group % queries;
    const unsigned to = position + 1 - first_key;
    const unsigned first_seen = window && position + 1 > window ? position + 1 - window : 0;
    const unsigned from = first_seen > first_key ? first_seen - first_key : 0;
    float most = -INFINITY;
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x)
        most = fmaxf(most, cap > 0.0f ? cap * tanhf(scores[i] / cap) : scores[i]);
    most = block_max(most);
    float sum = 0.0f;
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x)
        sum += expf((cap > 0.0f ? cap * tanhf(scores[i] / cap) : scores[i]) - most);
    const float inverse = 1.0f / block_sum(sum);
    for (unsigned i = threadIdx.x; i < keys; i += blockDim.x) {
        const bool seen = i >= from && i < to;
        const float score = !seen ? 0.0f : cap > 0.0f ? cap * tanhf(scores[i] / cap) : scores[i];
        p[i] = narrow<T>(seen ? expf(score - most) * inverse : 0.0f);
    }
}
KERNEL(128, attend_f32, (const float* scores, float* p, unsigned first_key, unsigned keys, unsigned first_query,
                         unsigned queries, unsigned group, unsigned window, float cap)) {
    attend(scores, p, first_key, keys, first_query, queries, group, window, cap);
}
KERNEL(128, attend_bf16, (const float* scores, bf16* p, unsigned first_key, unsigned keys, unsigned first_query,
                          unsigned queries, unsigned group, unsigned window, float cap)) {
    attend(scores, p, first_key, keys, first_query, queries, group, window, cap);
}

// The gradients of the scores take the place of the probabilities: p * (dp - sum(p * dp)), times the softcap's slope.
template <typename T>
__device__ __forceinline__ void attend_backward(const float* scores, const float* dp, T* p, unsigned keys, float cap) {
    scores += (size)blockIdx.x * keys;
    dp += (size)blockIdx.x * keys;
    p += (size)blockIdx.x * keys;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < keys; i += blockDim.x) sum += widen(p[i]) * dp[i];
    sum = block_sum(sum);
    for (unsigned i = threadIdx.x; i < keys; i += blockDim.x) {
        float slope = 1.0f;
        if (cap > 0.0f) {
            const float share = tanhf(scores[i] / cap);
            slope = 1.0f - share * share;
        }
        p[i] = narrow<T>(widen(p[i]) * (dp[i] - sum) * slope);
    }
}
KERNEL(128, attend_backward_f32, (const float* scores, const float* dp, float* p, unsigned keys, float cap)) {
    attend_backward(scores, dp, p, keys, cap);
}
KERNEL(128, attend_backward_bf16, (const float* scores, const float* dp, bf16* p, unsigned keys, float cap)) {
    attend_backward(scores, dp, p, keys, cap);
}
