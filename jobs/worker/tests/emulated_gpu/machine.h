// The emulated GPU's parts, for each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "language.h"

namespace emulated {

// CUresult, as far as it is told apart here.
enum Code {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
};

// How many GPUs there are, and the one that the calling thread means: that of its context.
constexpr int MOST_GPUS = 8;
int gpus();
int current_gpu();

// memory.cpp: what is allocated, each time of the calling thread's GPU. An address is never given out twice; beyond the
// last byte, rounded up to 16, lies a page that nobody may touch, and so does freed memory. Fresh memory holds NaNs.
namespace memory {
Code allocate(std::size_t bytes, std::uintptr_t* address);
Code release(std::uintptr_t address);
// Whether all of it lies in one living allocation of that GPU.
bool holds(std::uintptr_t address, std::size_t bytes);
// Whether the address is one that was, is, or will be given out.
bool ours(std::uintptr_t address);
// The GPU in whose memory the address lies; below zero where nothing living does.
int gpu_of(std::uintptr_t address);
std::size_t total(int gpu);
std::size_t held();
std::size_t peak();
// Says to the standard error what lies there.
void describe(std::uintptr_t address);
}  // namespace memory

// threads.cpp: runs all blocks of a kernel, and says how that ended.
Code run(const Kernel& kernel, uint3 blocks, uint3 threads, std::size_t shared_bytes, void** arguments);
// Signals that a kernel's mistakes raise are caught from here on.
void watch();

// The first fault of a kernel is the answer to every call about that GPU that follows, as on a GPU.
Code& fault_so_far();

// Where to stop and look: a mistake is told on the standard error, and becomes a fault.
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulated
