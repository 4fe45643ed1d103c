/* Stands in for NVIDIA's management library where there is no GPU. What it says stands in a file beside it, called like
 * the library with `.state` behind, and is read anew for each question; one word and one number a line:
 *
 *     init 18            what nvmlInit answers (0: all is well)
 *     count 2            GPUs
 *     uncorrected0 3     errors of GPU 0 since the driver was loaded; uncorrected_ever0 since it was made
 *     pending0 1         rows of its memory wait for being replaced; failed0: there are none left
 *     lost0 1            it does not answer any more
 *     event0 79          an Xid event of GPU 0; each line is told once
 *
 * Functions, numbers and layouts are those that NVIDIA documents for NVML 12 and newer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, TIMED_OUT = 10, IS_LOST = 15 };
enum { XID_CRITICAL_ERROR = 8, CORRECTED = 0, VOLATILE = 0, MOST_GPUS = 8 };

typedef struct { unsigned place; } *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event;

static struct { unsigned place; } gpus[MOST_GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static unsigned told;

static FILE *state(void) {
    Dl_info self;
    char path[4096];
    if (!dladdr((void *)&state, &self)) return NULL;
    snprintf(path, sizeof path, "%s.state", self.dli_fname);
    return fopen(path, "r");
}

/* The number behind the word, or `otherwise`. */
static long long said(const char *word, long long otherwise) {
    FILE *file = state();
    char name[64];
    long long number, found = otherwise;
    while (file && fscanf(file, "%63s %lld", name, &number) == 2)
        if (!strcmp(name, word)) found = number;
    if (file) fclose(file);
    return found;
}

static long long said_of(device gpu, const char *word, long long otherwise) {
    char name[64];
    snprintf(name, sizeof name, "%s%u", word, gpu->place);
    return said(name, otherwise);
}

#define UNLESS_LOST(gpu) do { if (said_of(gpu, "lost", 0)) return IS_LOST; } while (0)

int nvmlInit_v2(void) { return (int)said("init", OK); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { (void)error; return "as the state file says"; }

int nvmlSystemGetDriverVersion(char *to, unsigned length) {
    snprintf(to, length, "580.159.04");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)said("count", 1);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned place, device *gpu) {
    if (place >= MOST_GPUS || place >= (unsigned)said("count", 1)) return INVALID_ARGUMENT;
    *gpu = (device)&gpus[place];
    return OK;
}

int nvmlDeviceGetName(device gpu, char *to, unsigned length) {
    UNLESS_LOST(gpu);
    snprintf(to, length, "NVIDIA Fake 9000");
    return OK;
}

int nvmlDeviceGetUUID(device gpu, char *to, unsigned length) {
    UNLESS_LOST(gpu);
    snprintf(to, length, "GPU-00000000-0000-0000-0000-%012u", gpu->place);
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory *info) {
    UNLESS_LOST(gpu);
    info->total = 24ull << 30;
    info->reserved = 1ull << 29;
    info->used = 3ull << 30;
    info->free = info->total - info->reserved - info->used;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(device gpu, int type, int counter, unsigned long long *count) {
    UNLESS_LOST(gpu);
    if (type == CORRECTED) *count = 0;
    else *count = (unsigned long long)said_of(gpu, counter == VOLATILE ? "uncorrected" : "uncorrected_ever", 0);
    return OK;
}

int nvmlDeviceGetRemappedRows(device gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    UNLESS_LOST(gpu);
    *corrected = *uncorrected = 0;
    *pending = (unsigned)said_of(gpu, "pending", 0);
    *failed = (unsigned)said_of(gpu, "failed", 0);
    return OK;
}

int nvmlEventSetCreate(void **set) {
    *set = &told;
    return OK;
}
int nvmlEventSetFree(void *set) { (void)set; return OK; }

int nvmlDeviceGetSupportedEventTypes(device gpu, unsigned long long *types) {
    (void)gpu;
    *types = said("events", 1) ? XID_CRITICAL_ERROR : 0;
    return OK;
}
int nvmlDeviceRegisterEvents(device gpu, unsigned long long types, void *set) {
    (void)gpu, (void)types, (void)set;
    return OK;
}

int nvmlEventSetWait_v2(void *set, event *happened, unsigned ms) {
    FILE *file = state();
    char name[64];
    long long number;
    unsigned place, line = 0;
    (void)set;
    while (file && fscanf(file, "%63s %lld", name, &number) == 2) {
        if (sscanf(name, "event%u", &place) != 1 || line++ < told) continue;
        told++;
        fclose(file);
        *happened = (event){(device)&gpus[place % MOST_GPUS], XID_CRITICAL_ERROR, (unsigned long long)number, ~0u, ~0u};
        return OK;
    }
    if (file) fclose(file);
    usleep(ms * 1000);
    return TIMED_OUT;
}
