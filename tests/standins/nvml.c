/* Stands in for libnvidia-ml.so.1: GPUs of known, constant power, driven by environment variables.
 *
 * FAKE_NVML_WATTS        "250,260"   one GPU per entry (none: no GPU)
 * FAKE_NVML_UPDATE_MS    "100"       the energy counter advances in such steps (default 0: at once)
 * FAKE_NVML_NO_COUNTER   "1"         energy counter NOT_SUPPORTED (GPUs before Volta)
 * FAKE_NVML_NO_POWER     "1"         power NOT_SUPPORTED
 * FAKE_NVML_COUNTER_GAIN "1.2"       the counter runs fast by this factor
 * FAKE_NVML_STATE        a file whose one word is read at each query:
 *                        "lost" (GPU_IS_LOST), "reset" (counter starts again from 0), "busy" (counter UNKNOWN error)
 *
 * gcc -O2 -Wall -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15, UNKNOWN = 999 };
#define LARGEST_COUNT 16

typedef struct { int index; double watts; double reset_s; } Gpu;
static Gpu gpus[LARGEST_COUNT];
static int count;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int in_state(const char *word) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char found[16] = "";
    if (!file) return 0;
    if (fscanf(file, "%15s", found) != 1) found[0] = 0;
    fclose(file);
    return strcmp(found, word) == 0;
}

static double number(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *text = getenv("FAKE_NVML_WATTS");
    (void)flags;
    for (count = 0; text && *text && count < LARGEST_COUNT; count++) {
        gpus[count].index = count;
        gpus[count].watts = atof(text);
        text = strchr(text, ',');
        if (text) text++;
    }
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "stand-in error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "000.00"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) {
    if (index >= (unsigned)count) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned size) {
    (void)gpu;
    snprintf(text, size, "Stand-in GPU");
    return SUCCESS;
}
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned size) {
    snprintf(text, size, "GPU-%08d-0000-0000-0000-000000000000", gpu->index);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *milliwatts) {
    if (in_state("lost")) return GPU_IS_LOST;
    if (getenv("FAKE_NVML_NO_POWER")) return NOT_SUPPORTED;
    *milliwatts = (unsigned)(gpu->watts * 1000 + 0.5);
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *millijoules) {
    double at_s = now_s(), step_s = number("FAKE_NVML_UPDATE_MS", 0) / 1000;
    if (in_state("lost")) return GPU_IS_LOST;
    if (in_state("busy")) return UNKNOWN;
    if (getenv("FAKE_NVML_NO_COUNTER")) return NOT_SUPPORTED;
    if (in_state("reset") && gpu->reset_s == 0) gpu->reset_s = at_s;
    if (step_s > 0) at_s = (double)(long long)(at_s / step_s) * step_s;
    if (at_s < gpu->reset_s) at_s = gpu->reset_s;
    *millijoules = (unsigned long long)((at_s - gpu->reset_s) * gpu->watts * number("FAKE_NVML_COUNTER_GAIN", 1) * 1000);
    return SUCCESS;
}

/* What CodeCarbon asks for besides. */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    (void)gpu;
    memory->total = 8ull << 30;
    memory->used = 1ull << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *milliwatts) { (void)gpu; *milliwatts = 400000; return SUCCESS; }
int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *rates) { (void)gpu; rates->gpu = 50; rates->memory = 10; return SUCCESS; }
int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *celsius) { (void)gpu; (void)sensor; *celsius = 50; return SUCCESS; }
int nvmlDeviceGetComputeMode(Gpu *gpu, int *mode) { (void)gpu; *mode = 0; return SUCCESS; }
static int no_processes(Gpu *gpu, unsigned *n, void *list) { (void)gpu; (void)list; *n = 0; return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetComputeRunningProcesses_v2(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
