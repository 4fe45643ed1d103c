#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "machine.h"

namespace emulated::memory {
namespace {

// Only what is allocated is ever backed by memory.
constexpr std::size_t ADDRESSES = std::size_t(1) << 42;

struct State {
    std::mutex mutex;
    std::uintptr_t begin = 0, next = 0;
    std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
    struct Gpu {
        std::size_t total = std::size_t(4096) << 20, held = 0, peak = 0;
    } of[MOST_GPUS];
    struct Living {
        std::size_t bytes;
        int gpu;
    };
    // What is allocated, by its address.
    std::map<std::uintptr_t, Living> living;

    State() {
        const char* mebibytes = std::getenv("EMULATED_GPU_MEMORY_MIB");
        for (Gpu& gpu : of) {
            if (!mebibytes) break;
            gpu.total = std::size_t(std::atoll(mebibytes)) << 20;
            if (const char* comma = std::strchr(mebibytes, ',')) mebibytes = comma + 1;
        }
        void* all = mmap(nullptr, ADDRESSES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all != MAP_FAILED) begin = next = std::uintptr_t(all);
    }
    std::size_t pages(std::size_t bytes) const { return (bytes + page - 1) / page * page; }
};

State& state() {
    static State state;
    return state;
}

std::size_t rounded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

Code allocate(std::size_t bytes, std::uintptr_t* address) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (bytes == 0) return INVALID_VALUE;
    State::Gpu& gpu = s.of[current_gpu()];
    if (s.begin == 0 || gpu.held + bytes > gpu.total) return OUT_OF_MEMORY;
    const std::size_t size = s.pages(rounded(bytes));
    if (s.next + size + 2 * s.page > s.begin + ADDRESSES) return OUT_OF_MEMORY;
    const std::uintptr_t first = s.next + s.page;
    if (mprotect(reinterpret_cast<void*>(first), size, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
    s.next = first + size;
    *address = first + size - rounded(bytes);
    std::memset(reinterpret_cast<void*>(first), 0xff, size);
    s.living[*address] = {bytes, current_gpu()};
    gpu.held += bytes;
    if (gpu.held > gpu.peak) gpu.peak = gpu.held;
    return SUCCESS;
}

Code release(std::uintptr_t address) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto found = s.living.find(address);
    if (found == s.living.end()) {
        complain("what is to be freed, %#zx, is no living allocation", std::size_t(address));
        return INVALID_VALUE;
    }
    const auto [bytes, gpu] = found->second;
    if (gpu != current_gpu()) {
        complain("%zu bytes of GPU %d are freed as if they were GPU %d's", bytes, gpu, current_gpu());
        return INVALID_VALUE;
    }
    // What was written between the last byte and the page behind it.
    for (std::size_t i = bytes; i < rounded(bytes); i++)
        if (reinterpret_cast<unsigned char*>(address)[i] != 0xff) {
            complain("somebody wrote %zu bytes past the end of %zu bytes", i - bytes, bytes);
            fault_so_far() = ILLEGAL_ADDRESS;
            break;
        }
    const std::size_t size = s.pages(rounded(bytes));
    const std::uintptr_t first = address + rounded(bytes) - size;
    madvise(reinterpret_cast<void*>(first), size, MADV_DONTNEED);
    mprotect(reinterpret_cast<void*>(first), size, PROT_NONE);
    s.of[gpu].held -= bytes;
    s.living.erase(found);
    return SUCCESS;
}

bool holds(std::uintptr_t address, std::size_t bytes) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    auto after = s.living.upper_bound(address);
    if (after == s.living.begin()) return false;
    --after;
    return after->second.gpu == current_gpu() && address + bytes <= after->first + after->second.bytes;
}

int gpu_of(std::uintptr_t address) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    auto after = s.living.upper_bound(address);
    if (after == s.living.begin()) return -1;
    --after;
    return address < after->first + after->second.bytes ? after->second.gpu : -1;
}

bool ours(std::uintptr_t address) {
    const State& s = state();
    return s.begin != 0 && address >= s.begin && address < s.begin + ADDRESSES;
}

std::size_t total(int gpu) { return state().of[gpu].total; }
std::size_t held() { return state().of[current_gpu()].held; }
std::size_t peak() { return state().of[current_gpu()].peak; }

void describe(std::uintptr_t address) {
    State& s = state();
    const auto after = s.living.upper_bound(address);
    if (after == s.living.begin()) return complain("nothing is allocated before it");
    const auto before = std::prev(after);
    complain("the living allocation before it has %zu bytes and begins %zu bytes before it", before->second.bytes,
             std::size_t(address - before->first));
}

}  // namespace emulated::memory
