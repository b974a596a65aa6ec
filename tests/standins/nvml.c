/* Stands in for libnvidia-ml.so.1: GPUs of known power, driven by environment variables.
 *
 * FAKE_NVML_WATTS        "250,260"   one GPU of constant power per entry (none: no GPU)
 * FAKE_NVML_UPDATE_MS    "100"       the energy counter advances in such steps (default 0: at once)
 * FAKE_NVML_COUNTER_GAIN "1.2"       the counter runs fast by this factor
 * FAKE_NVML_NO_COUNTER   "1"         energy counter NOT_SUPPORTED (GPUs before Volta)
 * FAKE_NVML_NO_POWER     "1"         power NOT_SUPPORTED
 * FAKE_NVML_MIG          "0,1"       these GPUs are in MIG mode
 * FAKE_NVML_INIT_ERROR   "18"        nvmlInit fails with this code
 * FAKE_NVML_STATE        a file whose word (and GPU, if a number follows; else all) is read at each query:
 *                        "lost" (GPU_IS_LOST), "reset" (counter starts again from 0), "busy" (counter UNKNOWN error)
 * FAKE_NVML_FILE         a file of power over time, in place of FAKE_NVML_WATTS; read again when it changes. Lines:
 *     0 1.5 250                  GPU 0 draws 250 W from 1.5 s on, up to its next line (sorted by time; 0 W before)
 *     start_s 12345.6            CLOCK_MONOTONIC at which all times begin (default 0: they are absolute)
 *     period_s 2                 all profiles repeat
 *     counter_update_ms 100      as FAKE_NVML_UPDATE_MS
 *     counter_gain 1.02          as FAKE_NVML_COUNTER_GAIN
 *     power_update_ms 100        the power reading changes in such steps ...
 *     power_average_ms 25        ... and is the mean of that long before each step (default 0: the power at that instant)
 *     power_gain 0.95            the power reading is off by this factor
 *
 * gcc -O2 -Wall -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml.c -lm -lpthread
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, GPU_IS_LOST = 15, UNKNOWN = 999 };
#define LARGEST_COUNT 16
#define MOST_POINTS 4096

typedef struct { double s, watts; } Point;
typedef struct { int index, points; Point profile[MOST_POINTS]; double reset_s; } Gpu;
static Gpu gpus[LARGEST_COUNT];
static int count;
static struct { double start_s, period_s, counter_update_ms, counter_gain, power_update_ms, power_average_ms, power_gain; } file;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double number(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

static int in_state(const Gpu *gpu, const char *word) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *stream = path ? fopen(path, "r") : NULL;
    char found[16] = "";
    int index = gpu->index;
    if (!stream) return 0;
    if (fscanf(stream, "%15s %d", found, &index) < 1) found[0] = 0;
    fclose(stream);
    return strcmp(found, word) == 0 && index == gpu->index;
}

/* ------------------------------------------------------------------------------------------------ power over time */

static void add_point(int index, double s, double watts) {
    if (index < 0 || index >= LARGEST_COUNT || gpus[index].points == MOST_POINTS) return;
    gpus[index].profile[gpus[index].points++] = (Point){s, watts};
    if (index >= count) count = index + 1;
}

static void read_constants(const char *text) {
    for (int index = 0; text && *text && index < LARGEST_COUNT; index++) {
        add_point(index, 0, atof(text));
        text = strchr(text, ',');
        if (text) text++;
    }
}

static void read_file(FILE *stream) {
    char line[256], name[64];
    int index;
    double s, watts;
    while (fgets(line, sizeof line, stream)) {
        if (sscanf(line, "%d %lf %lf", &index, &s, &watts) == 3) add_point(index, s, watts);
        else if (sscanf(line, "%63s %lf", name, &s) == 2) {
            if (!strcmp(name, "start_s")) file.start_s = s;
            if (!strcmp(name, "period_s")) file.period_s = s;
            if (!strcmp(name, "counter_update_ms")) file.counter_update_ms = s;
            if (!strcmp(name, "counter_gain")) file.counter_gain = s;
            if (!strcmp(name, "power_update_ms")) file.power_update_ms = s;
            if (!strcmp(name, "power_average_ms")) file.power_average_ms = s;
            if (!strcmp(name, "power_gain")) file.power_gain = s;
        }
    }
}

static void read_profiles(void) {
    const char *path = getenv("FAKE_NVML_FILE");
    FILE *stream = path ? fopen(path, "r") : NULL;
    count = 0;
    for (int index = 0; index < LARGEST_COUNT; index++) gpus[index].index = index, gpus[index].points = 0;
    memset(&file, 0, sizeof file);
    file.power_gain = 1;
    file.counter_gain = number("FAKE_NVML_COUNTER_GAIN", 1);
    file.counter_update_ms = number("FAKE_NVML_UPDATE_MS", 0);
    if (!stream) {
        read_constants(getenv("FAKE_NVML_WATTS"));
        return;
    }
    read_file(stream);
    fclose(stream);
}

static void read_profiles_if_changed(void) {
    static struct timespec read_at;
    const char *path = getenv("FAKE_NVML_FILE");
    struct stat found;
    if (!path || stat(path, &found) != 0 || memcmp(&found.st_mtim, &read_at, sizeof read_at) == 0) return;
    read_at = found.st_mtim;
    read_profiles();
}

/* Joules from time 0 of the profile to `s`, without repetition. */
static double once_j(const Gpu *gpu, double s) {
    double joules = 0;
    for (int i = 0; i < gpu->points && gpu->profile[i].s < s; i++) {
        double end_s = i + 1 < gpu->points && gpu->profile[i + 1].s < s ? gpu->profile[i + 1].s : s;
        joules += gpu->profile[i].watts * (end_s - gpu->profile[i].s);
    }
    return joules;
}

/* Time of the profile at an instant of CLOCK_MONOTONIC, and how often it has repeated by then. */
static double profile_s(double at_s, double *periods) {
    double s = at_s - file.start_s;
    *periods = file.period_s > 0 && s > 0 ? floor(s / file.period_s) : 0;
    return s - *periods * file.period_s;
}

/* Joules from the start of all profiles to the instant `at_s` of CLOCK_MONOTONIC. */
static double total_j(const Gpu *gpu, double at_s) {
    double periods, s = profile_s(at_s, &periods);
    return periods * once_j(gpu, file.period_s) + once_j(gpu, s);
}

static double power_w(const Gpu *gpu, double at_s) {
    double periods, s = profile_s(at_s, &periods), watts = 0;
    for (int i = 0; i < gpu->points && gpu->profile[i].s <= s; i++) watts = gpu->profile[i].watts;
    return watts;
}

static double in_steps(double at_s, double step_ms) {
    return step_ms > 0 ? floor(at_s * 1000 / step_ms) * step_ms / 1000 : at_s;
}

/* ------------------------------------------------------------------------------------------------------- interface */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    read_profiles();
    for (int index = 0; index < LARGEST_COUNT && !getenv("FAKE_NVML_STATE"); index++) gpus[index].reset_s = 0;
    return (int)number("FAKE_NVML_INIT_ERROR", SUCCESS);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "stand-in error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "000.00"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) {
    if (index >= (unsigned)count) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return in_state(*gpu, "lost") ? GPU_IS_LOST : SUCCESS;
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

static double power_reading_w(const Gpu *gpu) {
    double end_s = in_steps(now_s(), file.power_update_ms), average_s = file.power_average_ms / 1000;
    if (average_s <= 0) return power_w(gpu, end_s);
    return (total_j(gpu, end_s) - total_j(gpu, end_s - average_s)) / average_s;
}
static double counter_reading_j(Gpu *gpu) {
    double at_s = in_steps(now_s(), file.counter_update_ms);
    if (in_state(gpu, "reset") && gpu->reset_s == 0) gpu->reset_s = now_s();
    if (gpu->reset_s == 0) return total_j(gpu, at_s);
    return at_s > gpu->reset_s ? total_j(gpu, at_s) - total_j(gpu, gpu->reset_s) : 0;
}

static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER; /* CodeCarbon has several threads */

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *milliwatts) {
    if (in_state(gpu, "lost")) return GPU_IS_LOST;
    if (getenv("FAKE_NVML_NO_POWER")) return NOT_SUPPORTED;
    pthread_mutex_lock(&reading);
    read_profiles_if_changed();
    *milliwatts = (unsigned)(power_reading_w(gpu) * file.power_gain * 1000 + 0.5);
    pthread_mutex_unlock(&reading);
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *millijoules) {
    if (in_state(gpu, "lost")) return GPU_IS_LOST;
    if (in_state(gpu, "busy")) return UNKNOWN;
    if (getenv("FAKE_NVML_NO_COUNTER")) return NOT_SUPPORTED;
    pthread_mutex_lock(&reading);
    read_profiles_if_changed();
    *millijoules = (unsigned long long)(counter_reading_j(gpu) * file.counter_gain * 1000);
    pthread_mutex_unlock(&reading);
    return SUCCESS;
}

static int is_sliced(const Gpu *gpu) {
    const char *text = getenv("FAKE_NVML_MIG");
    for (; text && *text; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL)
        if (atoi(text) == gpu->index) return 1;
    return 0;
}
int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    *current = *pending = is_sliced(gpu);
    return SUCCESS;
}
typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *rates) {
    if (is_sliced(gpu)) return NOT_SUPPORTED;
    *rates = (Utilization){50, 10};
    return SUCCESS;
}
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    (void)gpu;
    *memory = (Memory){8ull << 30, 7ull << 30, 1ull << 30};
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(Gpu *gpu, Memory2 *memory) {
    (void)gpu;
    *memory = (Memory2){memory->version, 8ull << 30, 0, 7ull << 30, 1ull << 30};
    return SUCCESS;
}

/* What CodeCarbon asks for besides. */
int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *milliwatts) { (void)gpu; *milliwatts = 400000; return SUCCESS; }
int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *celsius) { (void)gpu; (void)sensor; *celsius = 50; return SUCCESS; }
int nvmlDeviceGetComputeMode(Gpu *gpu, int *mode) { (void)gpu; *mode = 0; return SUCCESS; }
static int no_processes(Gpu *gpu, unsigned *n, void *list) { (void)gpu; (void)list; *n = 0; return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetComputeRunningProcesses_v2(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Gpu *gpu, unsigned *n, void *list) { return no_processes(gpu, n, list); }

/* What zeus asks for besides, as an Ampere GPU answers. */
int nvmlDeviceGetArchitecture(Gpu *gpu, unsigned *architecture) {
    (void)gpu;
    *architecture = 7;
    return SUCCESS;
}
int nvmlDeviceGetC2cModeInfoV(Gpu *gpu, void *info) {
    (void)gpu;
    (void)info;
    return NOT_SUPPORTED;
}
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    int type, status;
    union { unsigned ui; double d; } value;
} FieldValue;
int nvmlDeviceGetFieldValues(Gpu *gpu, int count_of_values, FieldValue *values) { /* 185: average power, 186: instant */
    for (int i = 0; i < count_of_values; i++) {
        int known = (values[i].field == 185 || values[i].field == 186) && values[i].scope == 0;
        values[i].status = known ? nvmlDeviceGetPowerUsage(gpu, &values[i].value.ui) : NOT_SUPPORTED;
    }
    return SUCCESS;
}
