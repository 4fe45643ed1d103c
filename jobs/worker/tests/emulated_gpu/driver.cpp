// libcuda, as far as drydock's worker uses it, over a GPU made of the CPU. Calls are done when they return; otherwise
// they answer as NVIDIA's do: a kernel's fault is told by the call after it, and by all that follow.
//   EMULATED_GPU_COUNT        GPUs (1)
//   EMULATED_GPU_MEMORY_MIB   memory of each (4096)
//   EMULATED_GPU_DRIVER       the CUDA version that the driver is of (13000)
//   EMULATED_GPU_SKIPS        a kernel that is not run: a GPU that computes wrongly
//   EMULATED_GPU_BACKWARDS    threads and blocks run from the last to the first
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "machine.h"

using namespace emulated;

namespace {

bool initialized = false;

int number(const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value ? std::atoi(value) : otherwise;
}

// What every call but the first says before anything else.
Code standing() { return !initialized ? NOT_INITIALIZED : fault_so_far; }

Code mistake(const char* what) {
    complain("%s", what);
    return INVALID_VALUE;
}

// A copy touches memory that is allocated, whole.
Code touched(std::uintptr_t address, std::size_t bytes, const char* what) {
    if (bytes == 0 || memory::holds(address, bytes)) return SUCCESS;
    complain("%s: %zu bytes at %#zx are not in one allocation", what, bytes, std::size_t(address));
    return INVALID_VALUE;
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC Code cuInit(unsigned) {
    initialized = true;
    watch();
    return number("EMULATED_GPU_COUNT", 1) > 0 ? SUCCESS : NO_DEVICE;
}

PUBLIC Code cuDriverGetVersion(int* version) {
    *version = number("EMULATED_GPU_DRIVER", 13000);
    return SUCCESS;
}

PUBLIC Code cuDeviceGetCount(int* count) {
    *count = number("EMULATED_GPU_COUNT", 1);
    return standing();
}

PUBLIC Code cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < number("EMULATED_GPU_COUNT", 1) ? standing() : INVALID_DEVICE;
}

PUBLIC Code cuDeviceGetName(char* name, int length, int) {
    std::snprintf(name, std::size_t(length), "emulated GPU (CPU)");
    return standing();
}

PUBLIC Code cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
    std::memset(uuid, 0, 16);
    uuid[15] = (unsigned char)device;
    return standing();
}

PUBLIC Code cuDeviceTotalMem_v2(std::size_t* bytes, int) {
    *bytes = memory::total();
    return standing();
}

PUBLIC Code cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 10: *value = 32; break;    // warp size
        case 13: *value = 1000; break;  // clock in kHz
        case 16: *value = 1; break;     // multiprocessors
        case 39: *value = 1024; break;  // threads of a multiprocessor
        case 75: *value = 8; break;     // compute capability
        case 76: *value = 0; break;
        case 97: *value = 227 << 10; break;  // shared memory of a block that asks for more
        case 115: *value = 1; break;         // memory pools
        default: *value = 0;
    }
    return standing();
}

PUBLIC Code cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = reinterpret_cast<void*>(std::intptr_t(device) + 1);
    return standing();
}
PUBLIC Code cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

namespace {
thread_local void* current = nullptr;
}
PUBLIC Code cuCtxSetCurrent(void* context) {
    current = context;
    return SUCCESS;
}
PUBLIC Code cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}
PUBLIC Code cuCtxSynchronize() { return standing(); }
PUBLIC Code cuCtxSetFlags(unsigned) { return standing(); }

PUBLIC Code cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &current;
    return standing();
}
PUBLIC Code cuMemPoolSetAttribute(void*, int, void*) { return standing(); }
// Nothing is held back, so what is reserved is what is used.
PUBLIC Code cuMemPoolGetAttribute(void*, int attribute, void* value) {
    switch (attribute) {
        case 5: case 7: *static_cast<std::uint64_t*>(value) = memory::held(); break;
        case 6: case 8: *static_cast<std::uint64_t*>(value) = memory::peak(); break;
        default: return mistake("cuMemPoolGetAttribute: no such attribute");
    }
    return standing();
}
PUBLIC Code cuMemPoolTrimTo(void*, std::size_t) { return standing(); }

PUBLIC Code cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    *total = memory::total();
    *free = memory::total() - memory::held();
    return standing();
}

PUBLIC Code cuMemAllocAsync(std::uintptr_t* address, std::size_t bytes, void*) {
    if (!current) return mistake("cuMemAllocAsync: this thread has no context");
    return standing() != SUCCESS ? standing() : memory::allocate(bytes, address);
}
PUBLIC Code cuMemFreeAsync(std::uintptr_t address, void*) {
    return standing() != SUCCESS ? standing() : memory::release(address);
}
PUBLIC Code cuMemAlloc_v2(std::uintptr_t* address, std::size_t bytes) { return cuMemAllocAsync(address, bytes, nullptr); }
PUBLIC Code cuMemFree_v2(std::uintptr_t address) { return cuMemFreeAsync(address, nullptr); }

PUBLIC Code cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void* from, std::size_t bytes, void*) {
    if (standing() != SUCCESS) return standing();
    if (const Code wrong = touched(to, bytes, "copy to the GPU")) return wrong;
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
PUBLIC Code cuMemcpyDtoHAsync_v2(void* to, std::uintptr_t from, std::size_t bytes, void*) {
    if (standing() != SUCCESS) return standing();
    if (const Code wrong = touched(from, bytes, "copy from the GPU")) return wrong;
    std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
PUBLIC Code cuMemcpyDtoDAsync_v2(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, void*) {
    if (standing() != SUCCESS) return standing();
    if (const Code wrong = touched(to, bytes, "copy on the GPU")) return wrong;
    if (const Code wrong = touched(from, bytes, "copy on the GPU")) return wrong;
    if (to < from + bytes && from < to + bytes) return mistake("a copy on the GPU overlaps itself");
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
PUBLIC Code cuMemsetD8Async(std::uintptr_t to, unsigned char value, std::size_t bytes, void*) {
    if (standing() != SUCCESS) return standing();
    if (const Code wrong = touched(to, bytes, "set on the GPU")) return wrong;
    std::memset(reinterpret_cast<void*>(to), value, bytes);
    return SUCCESS;
}

PUBLIC Code cuStreamCreate(void** stream, unsigned) {
    *stream = &initialized;
    return standing();
}
PUBLIC Code cuStreamSynchronize(void*) { return standing(); }
PUBLIC Code cuStreamDestroy_v2(void*) { return standing(); }

PUBLIC Code cuEventCreate(void** event, unsigned) {
    *event = new timespec{};
    return standing();
}
PUBLIC Code cuEventRecord(void* event, void*) {
    clock_gettime(CLOCK_MONOTONIC, static_cast<timespec*>(event));
    return standing();
}
PUBLIC Code cuEventSynchronize(void*) { return standing(); }
PUBLIC Code cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    const timespec *a = static_cast<timespec*>(from), *b = static_cast<timespec*>(to);
    *milliseconds = float(double(b->tv_sec - a->tv_sec) * 1e3 + double(b->tv_nsec - a->tv_nsec) * 1e-6);
    return standing();
}
PUBLIC Code cuEventDestroy_v2(void* event) {
    delete static_cast<timespec*>(event);
    return standing();
}

// The image is not looked at: the kernels are in here already.
PUBLIC Code cuModuleLoadData(void** module, const void* image) {
    *module = &kernels;
    return image ? standing() : INVALID_IMAGE;
}
PUBLIC Code cuModuleUnload(void*) { return standing(); }

PUBLIC Code cuModuleGetFunction(const Kernel** function, void*, const char* name) {
    for (*function = kernels; *function; *function = (*function)->next)
        if (std::strcmp((*function)->name, name) == 0) return standing();
    return NOT_FOUND;
}

PUBLIC Code cuFuncGetParamInfo(const Kernel* kernel, std::size_t index, std::size_t* offset, std::size_t* size) {
    if (index >= kernel->parameters.count) return INVALID_VALUE;
    *offset = index * 8;
    *size = kernel->parameters.sizes[index];
    return standing();
}

PUBLIC Code cuFuncGetAttribute(int* value, int attribute, const Kernel* kernel) {
    *value = attribute == 0 ? int(kernel->most_threads) : 0;
    return standing();
}

namespace {
// What a kernel that asked for more than 48 KiB may have.
int shared_of[1024];
int& shared_at(const Kernel* kernel) { return shared_of[(std::uintptr_t(kernel) >> 4) % 1024]; }
}  // namespace

PUBLIC Code cuFuncSetAttribute(const Kernel* kernel, int attribute, int value) {
    if (attribute != 8) return mistake("cuFuncSetAttribute: only the dynamic shared memory can be set");
    if (value > 227 << 10) return INVALID_VALUE;
    shared_at(kernel) = value;
    return standing();
}

PUBLIC Code cuLaunchKernel(const Kernel* kernel, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned threads_x,
                           unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void*, void** arguments, void**) {
    if (standing() != SUCCESS) return standing();
    const unsigned long long threads = 1ull * threads_x * threads_y * threads_z;
    if (blocks_x == 0 || blocks_y == 0 || blocks_z == 0 || threads == 0) return mistake("a launch of nothing");
    if (blocks_x > 0x7fffffffu || blocks_y > 65535 || blocks_z > 65535) return mistake("a grid that is too large");
    if (threads > kernel->most_threads || threads_z > 64) {
        complain("kernel `%s`: %llu threads in a block that may have %u", kernel->name, threads, kernel->most_threads);
        return INVALID_VALUE;
    }
    if (shared_bytes > 48u << 10 && int(shared_bytes) > shared_at(kernel)) {
        complain("kernel `%s`: %u bytes of shared memory that it did not ask for first", kernel->name, shared_bytes);
        return INVALID_VALUE;
    }
    static const char* const skipped = std::getenv("EMULATED_GPU_SKIPS");
    if (skipped && std::strcmp(skipped, kernel->name) == 0) return SUCCESS;
    const Code code = run(*kernel, {blocks_x, blocks_y, blocks_z}, {threads_x, threads_y, threads_z}, shared_bytes, arguments);
    if (fault_so_far == SUCCESS) fault_so_far = code;
    return SUCCESS;
}

PUBLIC Code cuGetErrorName(Code code, const char** name) {
    switch (code) {
        case SUCCESS: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
        case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case MISALIGNED_ADDRESS: *name = "CUDA_ERROR_MISALIGNED_ADDRESS"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
PUBLIC Code cuGetErrorString(Code code, const char** text) { return cuGetErrorName(code, text); }

// For the emulated cuBLAS: whether a product's operand lies in one allocation.
PUBLIC bool emulated_gpu_holds(std::uintptr_t address, std::size_t bytes) { return memory::holds(address, bytes); }
PUBLIC void emulated_gpu_complains(const char* what) { complain("%s", what); }
