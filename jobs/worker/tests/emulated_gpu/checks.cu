// Kernels that only tests of the emulated GPU run: what threads of a block mean to each other.
#include "../../cuda/kernels/drydock.cuh"

// Thread after thread the sum of its block, and of its warp.
KERNEL(1024, check_sums, (const float* values, float* blocks, float* warps)) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    blocks[i] = block_sum(values[i]);
    warps[i] = warp_sum(values[i]);
}

// Turns each block's values around by way of shared memory, `shift` threads on.
KERNEL(256, check_shared, (float* values, unsigned shift)) {
    DYNAMIC_SHARED(float, kept);
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    kept[threadIdx.x] = values[i];
    __syncthreads();
    values[i] = kept[(threadIdx.x + shift) % blockDim.x];
}

// A part of a warp waits for the whole block, the rest for the whole warp: nobody ever goes on.
KERNEL(64, check_deadlock, (float* values)) {
    if (threadIdx.x % WARP < 8) __syncthreads();
    else values[threadIdx.x] = warp_sum(values[threadIdx.x]);
}

// Four values at once from an address that allows only one at a time.
KERNEL(32, check_misaligned, (float* values)) { store4(values + 1, load4(values + 1)); }
