/* Stands in for NVIDIA's management library where there is no GPU. What it says stands in a file beside it, called like
 * the library with `.state` behind, and is read anew for each question; one word and one number a line:
 *
 *     init 18            what nvmlInit answers (0: all is well)
 *     count 2            GPUs
 *     uncorrected0 3     errors of GPU 0 since the driver was loaded; uncorrected_ever0 since it was made
 *     corrected0 5       the same of those that could be corrected
 *     pending0 1         rows of its memory wait for being replaced; failed0: there are none left
 *     used0 1024         MiB of its memory that somebody holds, of 24 GiB; by default 3 GiB
 *     busy0 97           percent of the time in which it computes; power0 in milliwatts, heat0 in degrees Celsius
 *     process0 4711      a process that computes on it; each holds held0 MiB
 *     slices0 2          it is divided: its slices are every other place, as after some were removed
 *     lost0 1            it does not answer any more; hangs 1: nobody does, and callers wait for ever
 *     event0 79          an Xid event of GPU 0; each line is told once
 *
 * Functions, numbers and layouts are those that NVIDIA documents for NVML 12 and newer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMED_OUT = 10, IS_LOST = 15 };
enum { XID_CRITICAL_ERROR = 8, CORRECTED = 0, VOLATILE = 0, MOST_GPUS = 8, MOST_SLICES = 7 };

/* The slice counts from 1; of a whole GPU it is 0. */
typedef struct { unsigned place, slice; } *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;
typedef struct { device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event;

static struct { unsigned place, slice; } gpus[MOST_GPUS] = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}};
static struct { unsigned place, slice; } slices[MOST_GPUS][MOST_SLICES];
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

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13000;
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    while (said("hangs", 0)) usleep(10000);
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
    snprintf(to, length, gpu->slice ? "NVIDIA Fake 9000 MIG 3g.12gb" : "NVIDIA Fake 9000");
    return OK;
}

int nvmlDeviceGetUUID(device gpu, char *to, unsigned length) {
    UNLESS_LOST(gpu);
    if (gpu->slice) snprintf(to, length, "MIG-00000000-0000-0000-%04u-%012u", gpu->slice, gpu->place);
    else snprintf(to, length, "GPU-00000000-0000-0000-0000-%012u", gpu->place);
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory *info) {
    UNLESS_LOST(gpu);
    info->total = (gpu->slice ? 12ull : 24ull) << 30;
    info->reserved = gpu->slice ? 0 : 1ull << 29;
    info->used = gpu->slice ? 1ull << 30 : (unsigned long long)said_of(gpu, "used", 3072) << 20;
    info->free = info->total - info->reserved - info->used;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor) {
    UNLESS_LOST(gpu);
    *major = 9;
    *minor = 0;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device gpu, unsigned *rates) {
    UNLESS_LOST(gpu);
    /* Of a divided GPU the driver does not tell. */
    if (said_of(gpu, "slices", 0)) return NOT_SUPPORTED;
    rates[0] = (unsigned)said_of(gpu, "busy", 0);
    rates[1] = rates[0] / 2;
    return OK;
}

int nvmlDeviceGetTemperature(device gpu, int sensor, unsigned *degrees) {
    UNLESS_LOST(gpu);
    (void)sensor;
    *degrees = (unsigned)said_of(gpu, "heat", 41);
    return OK;
}

int nvmlDeviceGetPowerUsage(device gpu, unsigned *milliwatts) {
    UNLESS_LOST(gpu);
    *milliwatts = (unsigned)said_of(gpu, "power", 71500);
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(device gpu, unsigned *milliwatts) {
    UNLESS_LOST(gpu);
    *milliwatts = 450000;
    return OK;
}

int nvmlDeviceGetEccMode(device gpu, int *now, int *next) {
    UNLESS_LOST(gpu);
    *now = *next = 1;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(device gpu, int type, int counter, unsigned long long *count) {
    UNLESS_LOST(gpu);
    if (type == CORRECTED) *count = (unsigned long long)said_of(gpu, "corrected", 0);
    else *count = (unsigned long long)said_of(gpu, counter == VOLATILE ? "uncorrected" : "uncorrected_ever", 0);
    return OK;
}

int nvmlDeviceGetRemappedRows(device gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    UNLESS_LOST(gpu);
    *corrected = 1;
    *uncorrected = 0;
    *pending = (unsigned)said_of(gpu, "pending", 0);
    *failed = (unsigned)said_of(gpu, "failed", 0);
    return OK;
}

int nvmlDeviceGetMigMode(device gpu, unsigned *now, unsigned *next) {
    UNLESS_LOST(gpu);
    *now = *next = said_of(gpu, "slices", -1) >= 0;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(device gpu, unsigned *count) {
    (void)gpu;
    *count = MOST_SLICES;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device gpu, unsigned place, device *slice) {
    if (place % 2 || place / 2 >= (unsigned)said_of(gpu, "slices", 0) || place >= MOST_SLICES) return NOT_FOUND;
    slices[gpu->place][place].place = gpu->place;
    slices[gpu->place][place].slice = place + 1;
    *slice = (device)&slices[gpu->place][place];
    return OK;
}

/* Instances are numbered otherwise than slices. */
int nvmlDeviceGetGpuInstanceId(device slice, unsigned *number) {
    if (!slice->slice) return INVALID_ARGUMENT;
    *number = slice->slice + 6;
    return OK;
}

int nvmlDeviceGetComputeInstanceId(device slice, unsigned *number) {
    if (!slice->slice) return INVALID_ARGUMENT;
    *number = 0;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, process *to) {
    FILE *file = state();
    char name[64], wanted[64];
    long long number;
    unsigned found = 0, room = *count;
    UNLESS_LOST(gpu);
    snprintf(wanted, sizeof wanted, "process%u", gpu->place);
    while (file && fscanf(file, "%63s %lld", name, &number) == 2) {
        if (strcmp(name, wanted)) continue;
        if (to && found < room)
            to[found] = (process){(unsigned)number, (unsigned long long)said_of(gpu, "held", 512) << 20, ~0u, ~0u};
        found++;
    }
    if (file) fclose(file);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
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

/* The next event that was not told yet, if there is any. */
static int next_event(event *happened) {
    FILE *file = state();
    char name[64];
    long long number;
    unsigned place, line = 0;
    while (file && fscanf(file, "%63s %lld", name, &number) == 2) {
        if (sscanf(name, "event%u", &place) != 1 || line++ < told) continue;
        told++;
        fclose(file);
        *happened = (event){(device)&gpus[place % MOST_GPUS], XID_CRITICAL_ERROR, (unsigned long long)number, ~0u, ~0u};
        return OK;
    }
    if (file) fclose(file);
    return TIMED_OUT;
}

int nvmlEventSetWait_v2(void *set, event *happened, unsigned ms) {
    (void)set;
    for (unsigned waited = 0; next_event(happened) != OK; waited += 10) {
        if (waited >= ms) return TIMED_OUT;
        usleep(10000);
    }
    return OK;
}
