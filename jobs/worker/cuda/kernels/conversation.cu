// Conversations, as kernels/attention/cache.rs: what layers remember of the tokens of a row, and queries that look back at
// it. Rows of different lengths go through together; each has a memory of its own, which begins at starts[row], has room
// for rooms[row] tokens, and is [layers, 2, room, width]: of every layer the turned keys and below them the values, a
// token's heads side by side in `width` values. Token t of a pass is of the row rows[t], in the place places[t] of it.
#include "turned.cuh"

typedef unsigned long long size;

template <typename T>
__device__ __forceinline__ T* keys_of(const size* starts, const unsigned* rooms, unsigned row, unsigned layer,
                                      unsigned width) {
    return reinterpret_cast<T*>(starts[row]) + (size)2 * layer * rooms[row] * width;
}

// A block has a token, whose keys (which it turns) and values it puts where they are remembered.
template <typename T>
__device__ __forceinline__ void remember(const T* k, size k_stride, const T* v, size v_stride, const float* cosines,
                                         const float* sines, const unsigned* angles, const size* starts,
                                         const unsigned* rooms, const unsigned* rows, const unsigned* places,
                                         unsigned layer, unsigned width, unsigned dim, unsigned half) {
    const unsigned token = blockIdx.x, row = rows[token];
    T* keys = keys_of<T>(starts, rooms, row, layer, width) + (size)places[token] * width;
    T* values = keys + (size)rooms[row] * width;
    k += token * k_stride;
    v += token * v_stride;
    for (unsigned at = threadIdx.x; at < width; at += blockDim.x) {
        const unsigned i = at % dim;
        keys[at] = narrow<T>(turned(k + (at - i), i, cosines, sines, angles[token], half, 1.0f, 1.0f));
        values[at] = v[at];
    }
}
KERNEL(256, remember_f32, (const float* k, size k_stride, const float* v, size v_stride, const float* cosines,
                           const float* sines, const unsigned* angles, const size* starts, const unsigned* rooms,
                           const unsigned* rows, const unsigned* places, unsigned layer, unsigned width, unsigned dim,
                           unsigned half)) {
    remember(k, k_stride, v, v_stride, cosines, sines, angles, starts, rooms, rows, places, layer, width, dim, half);
}
KERNEL(256, remember_bf16, (const bf16* k, size k_stride, const bf16* v, size v_stride, const float* cosines,
                            const float* sines, const unsigned* angles, const size* starts, const unsigned* rooms,
                            const unsigned* rows, const unsigned* places, unsigned layer, unsigned width, unsigned dim,
                            unsigned half)) {
    remember(k, k_stride, v, v_stride, cosines, sines, angles, starts, rooms, rows, places, layer, width, dim, half);
}

template <typename T>
__device__ __forceinline__ float dot(const float* asked, const T* key, unsigned dim) {
    float sum = 0.0f;
    if (dim % 4 == 0) {
        for (unsigned i = 0; i < dim; i += 4) {
            const float4 k = load4(key + i);
            sum += asked[i] * k.x + asked[i + 1] * k.y + asked[i + 2] * k.z + asked[i + 3] * k.w;
        }
        return sum;
    }
    for (unsigned i = 0; i < dim; i++) sum += asked[i] * widen(key[i]);
    return sum;
}

// A block has one head of one of the tokens `asking`: what it sees of its row up to its own place, and of `window` tokens
// at most where there is a window. As many keys as there are threads are looked at at once; what was summed up so far is
// scaled to the largest score so far (Milakov and Gimelshein 2018), so that a row may be of any length. Scores are bent to
// lie within a softcap where there is one. Dynamic shared memory: 2 * dim + blockDim.x floats.
template <typename T>
__device__ __forceinline__ void look_back(const T* q, size q_stride, const float* cosines, const float* sines,
                                          const unsigned* angles, float scale, const size* starts,
                                          const unsigned* rooms, const unsigned* rows, const unsigned* places,
                                          const unsigned* asking, unsigned layer, T* y, size y_stride, unsigned heads,
                                          unsigned group, unsigned dim, unsigned half, unsigned window, float cap) {
    DYNAMIC_SHARED(float, shared);
    float *asked = shared, *sums = shared + dim, *p = shared + 2 * dim;
    const unsigned token = asking[blockIdx.x / heads], head = blockIdx.x % heads;
    const unsigned row = rows[token], last = places[token], width = heads / group * dim;
    const T* keys = keys_of<T>(starts, rooms, row, layer, width) + head / group * dim;
    const T* values = keys + (size)rooms[row] * width;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        asked[i] = turned(q + token * q_stride + head * dim, i, cosines, sines, angles[token], half, 1.0f, scale);
        sums[i] = 0.0f;
    }
    __syncthreads();
    float most = -INFINITY, total = 0.0f;
    for (unsigned from = window && last + 1 > window ? last + 1 - window : 0; from <= last; from += blockDim.x) {
        const unsigned here = from + threadIdx.x, count = min(blockDim.x, last + 1 - from);
        float score = -INFINITY;
        if (here <= last) {
            score = dot(asked, keys + (size)here * width, dim);
            if (cap > 0.0f) score = cap * tanhf(score / cap);
        }
        // Nobody looks at the last keys' shares any more when all have come here.
        const float more = fmaxf(most, block_max(score)), kept = expf(most - more);
        p[threadIdx.x] = here <= last ? expf(score - more) : 0.0f;
        total = total * kept + block_sum(p[threadIdx.x]);
        for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
            float sum = sums[i] * kept;
            for (unsigned key = 0; key < count; key++) sum += p[key] * widen(values[(size)(from + key) * width + i]);
            sums[i] = sum;
        }
        most = more;
    }
    y += token * y_stride + head * dim;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) y[i] = narrow<T>(sums[i] / total);
}
KERNEL(128, look_back_f32, (const float* q, size q_stride, const float* cosines, const float* sines,
                            const unsigned* angles, float scale, const size* starts, const unsigned* rooms,
                            const unsigned* rows, const unsigned* places, const unsigned* asking, unsigned layer,
                            float* y, size y_stride, unsigned heads, unsigned group, unsigned dim, unsigned half,
                            unsigned window, float cap)) {
    look_back(q, q_stride, cosines, sines, angles, scale, starts, rooms, rows, places, asking, layer, y, y_stride, heads,
              group, dim, half, window, cap);
}
KERNEL(128, look_back_bf16, (const bf16* q, size q_stride, const float* cosines, const float* sines,
                             const unsigned* angles, float scale, const size* starts, const unsigned* rooms,
                             const unsigned* rows, const unsigned* places, const unsigned* asking, unsigned layer,
                             bf16* y, size y_stride, unsigned heads, unsigned group, unsigned dim, unsigned half,
                             unsigned window, float cap)) {
    look_back(q, q_stride, cosines, sines, angles, scale, starts, rooms, rows, places, asking, layer, y, y_stride, heads,
              group, dim, half, window, cap);
}

// A block has a token: its likeliest successor by its logits [vocabulary], the first of several; 0xffffffff where the
// largest logit is no number or is infinite.
KERNEL(512, likeliest, (const float* logits, unsigned* found, float cap, unsigned vocabulary)) {
    logits += (size)blockIdx.x * vocabulary;
    float most = -INFINITY;
    unsigned at = 0;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        const float logit = cap > 0.0f ? cap * tanhf(logits[i] / cap) : logits[i];
        if (logit > most) most = logit, at = i;
    }
    __shared__ float of_threads[512];
    __shared__ unsigned places[512];
    of_threads[threadIdx.x] = most;
    places[threadIdx.x] = at;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = of_threads[threadIdx.x + half];
            const unsigned there = places[threadIdx.x + half];
            const bool first = there < places[threadIdx.x];
            if (other > of_threads[threadIdx.x] || (other == of_threads[threadIdx.x] && first)) {
                of_threads[threadIdx.x] = other;
                places[threadIdx.x] = there;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const bool number = of_threads[0] > -INFINITY && of_threads[0] < INFINITY;
        found[blockIdx.x] = number ? places[0] : 0xffffffffu;
    }
}
