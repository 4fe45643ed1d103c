// libcuda, as far as drydock's worker uses it, over a GPU made of the CPU. Calls are done when they return; otherwise
// they answer as NVIDIA's do: a kernel's fault is told by the call after it, and by all that follow.
//   EMULATED_GPU_COUNT        GPUs (1)
//   EMULATED_GPU_MEMORY_MIB   memory of each (4096); of the first, the second and so on, where commas are between numbers
//   EMULATED_GPU_DRIVER       the CUDA version that the driver is of (13000)
//   EMULATED_GPU_SKIPS        a kernel that is not run: a GPU that computes wrongly
//   EMULATED_GPU_BREAKS       a kernel that is a fault of the last GPU's
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

// The context of the calling thread: the GPU's number, counted from 1.
thread_local void* current = nullptr;

// What every call but the first says before anything else.
Code standing() { return !initialized ? NOT_INITIALIZED : fault_so_far(); }

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

// A stream is its GPU's, and what goes through it is asked for by a thread with that GPU's context.
char streams[MOST_GPUS];
Code goes_through(const void* stream, const char* what) {
    if (current && stream == &streams[current_gpu()]) return standing();
    complain("%s: the stream is not of GPU %d, which this thread's context is of", what, current_gpu());
    return INVALID_HANDLE;
}

}  // namespace

int emulated::gpus() {
    const int count = number("EMULATED_GPU_COUNT", 1);
    return count < MOST_GPUS ? count : MOST_GPUS;
}
int emulated::current_gpu() { return current ? int(reinterpret_cast<std::intptr_t>(current)) - 1 : 0; }

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC Code cuInit(unsigned) {
    initialized = true;
    watch();
    return gpus() > 0 ? SUCCESS : NO_DEVICE;
}

PUBLIC Code cuDriverGetVersion(int* version) {
    *version = number("EMULATED_GPU_DRIVER", 13000);
    return SUCCESS;
}

PUBLIC Code cuDeviceGetCount(int* count) {
    *count = gpus();
    return standing();
}

PUBLIC Code cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < gpus() ? standing() : INVALID_DEVICE;
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

PUBLIC Code cuDeviceTotalMem_v2(std::size_t* bytes, int device) {
    *bytes = memory::total(device);
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
    *total = memory::total(current_gpu());
    *free = *total - memory::held();
    return standing();
}

PUBLIC Code cuMemAllocAsync(std::uintptr_t* address, std::size_t bytes, void* stream) {
    if (!current) return mistake("cuMemAllocAsync: this thread has no context");
    if (const Code wrong = goes_through(stream, "cuMemAllocAsync")) return wrong;
    return memory::allocate(bytes, address);
}
PUBLIC Code cuMemFreeAsync(std::uintptr_t address, void* stream) {
    if (const Code wrong = goes_through(stream, "cuMemFreeAsync")) return wrong;
    return memory::release(address);
}
PUBLIC Code cuMemAlloc_v2(std::uintptr_t* address, std::size_t bytes) {
    return cuMemAllocAsync(address, bytes, &streams[current_gpu()]);
}
PUBLIC Code cuMemFree_v2(std::uintptr_t address) { return cuMemFreeAsync(address, &streams[current_gpu()]); }

PUBLIC Code cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void* from, std::size_t bytes, void* stream) {
    if (const Code wrong = goes_through(stream, "copy to the GPU")) return wrong;
    if (const Code wrong = touched(to, bytes, "copy to the GPU")) return wrong;
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
PUBLIC Code cuMemcpyDtoHAsync_v2(void* to, std::uintptr_t from, std::size_t bytes, void* stream) {
    if (const Code wrong = goes_through(stream, "copy from the GPU")) return wrong;
    if (const Code wrong = touched(from, bytes, "copy from the GPU")) return wrong;
    std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
PUBLIC Code cuMemcpyDtoDAsync_v2(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, void* stream) {
    if (const Code wrong = goes_through(stream, "copy on the GPU")) return wrong;
    if (const Code wrong = touched(to, bytes, "copy on the GPU")) return wrong;
    if (const Code wrong = touched(from, bytes, "copy on the GPU")) return wrong;
    if (to < from + bytes && from < to + bytes) return mistake("a copy on the GPU overlaps itself");
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}
PUBLIC Code cuMemsetD8Async(std::uintptr_t to, unsigned char value, std::size_t bytes, void* stream) {
    if (const Code wrong = goes_through(stream, "set on the GPU")) return wrong;
    if (const Code wrong = touched(to, bytes, "set on the GPU")) return wrong;
    std::memset(reinterpret_cast<void*>(to), value, bytes);
    return SUCCESS;
}

PUBLIC Code cuStreamCreate(void** stream, unsigned) {
    *stream = &streams[current_gpu()];
    return standing();
}
PUBLIC Code cuStreamSynchronize(void* stream) { return goes_through(stream, "cuStreamSynchronize"); }
PUBLIC Code cuStreamQuery(void* stream) { return goes_through(stream, "cuStreamQuery"); }
PUBLIC Code cuStreamDestroy_v2(void* stream) { return goes_through(stream, "cuStreamDestroy"); }

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
                           unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments, void**) {
    if (const Code wrong = goes_through(stream, kernel->name)) return wrong;
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
    // No GPU was allowed to look into another's memory.
    for (std::size_t i = 0; i < kernel->parameters.count; i++) {
        std::uintptr_t value = 0;
        if (kernel->parameters.sizes[i] == 8) std::memcpy(&value, arguments[i], 8);
        const int gpu = memory::ours(value) ? memory::gpu_of(value) : -1;
        if (gpu >= 0 && gpu != current_gpu()) {
            complain("kernel `%s` on GPU %d is given memory of GPU %d", kernel->name, current_gpu(), gpu);
            fault_so_far() = ILLEGAL_ADDRESS;
            return SUCCESS;
        }
    }
    static const char* const broken = std::getenv("EMULATED_GPU_BREAKS");
    if (broken && current_gpu() == gpus() - 1 && std::strcmp(broken, kernel->name) == 0) {
        fault_so_far() = LAUNCH_FAILED;
        return SUCCESS;
    }
    const Code code = run(*kernel, {blocks_x, blocks_y, blocks_z}, {threads_x, threads_y, threads_z}, shared_bytes, arguments);
    if (fault_so_far() == SUCCESS) fault_so_far() = code;
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

// For the other emulated libraries: whether something lies in one allocation of the calling thread's GPU.
PUBLIC bool emulated_gpu_holds(std::uintptr_t address, std::size_t bytes) { return memory::holds(address, bytes); }
PUBLIC void emulated_gpu_complains(const char* what) { complain("%s", what); }
// The GPU of the calling thread; and for a while another one.
PUBLIC int emulated_gpu_current() { return current ? current_gpu() : -1; }
PUBLIC bool emulated_gpu_streams(int gpu, const void* stream) { return stream == &streams[gpu]; }
PUBLIC void emulated_gpu_becomes(int gpu) { current = reinterpret_cast<void*>(std::intptr_t(gpu) + 1); }
