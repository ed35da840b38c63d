/* A stand-in for the driver's library under PyCUDA and NVIDIA's bindings: memory is the host's, work is done when it is
   asked for, every call is counted, and the next of a name can be told to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void* Any;
enum { kDone = 0, kOutOfMemory = 2, kNotFound = 500, kUnsupported = 801, kMajor = 75, kMinor = 76 };
enum { kTotal = 1 << 30 };

static char failing[64], calls[1 << 16];
static int failing_code, sticky;
static size_t used, host_used;
static __thread Any current[16];
static __thread int depth;
static int handles, held;
struct Copy { void* to; const void* from; size_t bytes; };
static struct Copy recorded[64];
static int is_capturing, count_recorded;

void standin_fail(const char* name, int code, int is_sticky) {
    snprintf(failing, sizeof failing, "%s", name);
    failing_code = code;
    if (is_sticky) sticky = code;
}
const char* standin_calls(void) { return calls; }
void standin_forget(void) { calls[0] = 0; failing[0] = 0; sticky = 0; }
long standin_held(void) { return (long)(held + (used != 0) + (host_used != 0)); }

static Result told(const char* name) {
    size_t at = strlen(calls);
    snprintf(calls + at, sizeof calls - at, "%s ", name);
    if (!strcmp(name, failing)) { failing[0] = 0; return failing_code; }
    return sticky;
}
#define TOLD(name) do { Result wrong = told(#name); if (wrong) return wrong; } while (0)

Result cuInit(unsigned flags) { TOLD(cuInit); return flags; }
Result cuDriverGetVersion(int* v) { *v = 13000; return 0; }
Result cuDeviceGetCount(int* n) { *n = 1; return 0; }
Result cuDeviceGet(int* d, int n) { TOLD(cuDeviceGet); *d = n; return n ? 101 : 0; }
Result cuDeviceGetName(char* to, int most, int d) { snprintf(to, (size_t)most, "stand-in %d", d); return 0; }
Result cuDeviceGetAttribute(int* v, int name, int d) { (void)d; *v = name == kMajor ? 8 : name == kMinor ? 6 : 1; return 0; }
Result cuDevicePrimaryCtxRetain(Any* c, int d) { TOLD(cuDevicePrimaryCtxRetain); *c = (Any)(uintptr_t)(0x900 + d); return 0; }
Result cuDevicePrimaryCtxRelease_v2(int d) { TOLD(cuDevicePrimaryCtxRelease_v2); return d; }
Result cuCtxPushCurrent_v2(Any c) { TOLD(cuCtxPushCurrent_v2); current[++depth] = c; return 0; }
Result cuCtxPopCurrent_v2(Any* c) { TOLD(cuCtxPopCurrent_v2); if (c) *c = current[depth]; depth--; return 0; }
Result cuCtxGetCurrent(Any* c) { *c = current[depth]; return 0; }
Result cuCtxSetCurrent(Any c) { current[depth] = c; return 0; }
Result cuCtxGetDevice(int* d) { if (!current[depth]) return 201; *d = (int)((uintptr_t)current[depth] - 0x900); return 0; }
Result cuCtxDetach(Any c) { (void)c; return 0; }
Result cuCtxGetApiVersion(Any c, unsigned* v) { (void)c; *v = 13000; return 0; }
Result cuCtxSynchronize(void) { TOLD(cuCtxSynchronize); return 0; }
Result cuMemGetInfo_v2(size_t* free_, size_t* total) { *free_ = kTotal - used; *total = kTotal; return current[depth] ? 0 : 201; }
struct Block { size_t bytes; };
Result cuMemAlloc_v2(uint64_t* p, size_t n) {
    TOLD(cuMemAlloc_v2);
    if (!current[depth]) return 201;
    if (n > kTotal - used) return kOutOfMemory;
    struct Block* b = malloc(sizeof *b + 256 + n);
    b->bytes = n; used += n; *p = (uint64_t)(uintptr_t)(b + 1); return 0;
}
Result cuMemFree_v2(uint64_t p) { TOLD(cuMemFree_v2); struct Block* b = (struct Block*)(uintptr_t)p - 1; used -= b->bytes; free(b); return 0; }
Result cuMemHostAlloc(Any* p, size_t n, unsigned flags) { TOLD(cuMemHostAlloc); (void)flags; struct Block* b = malloc(sizeof *b + 64 + n); b->bytes = n; host_used += n; *p = b + 1; return 0; }
Result cuMemFreeHost(Any p) { TOLD(cuMemFreeHost); struct Block* b = (struct Block*)p - 1; host_used -= b->bytes; free(b); return 0; }
static Result copy(void* to, const void* from, size_t n) {
    if (is_capturing) { recorded[count_recorded++] = (struct Copy){to, from, n}; return 0; }
    memcpy(to, from, n); return 0;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t n, Any s) { TOLD(cuMemcpyHtoDAsync_v2); (void)s; return copy((Any)(uintptr_t)to, from, n); }
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, Any s) { TOLD(cuMemcpyDtoHAsync_v2); (void)s; return copy(to, (Any)(uintptr_t)from, n); }
Result cuStreamCreate(Any* s, unsigned flags) { TOLD(cuStreamCreate); if (flags != 1) return 1; held++; *s = (Any)(uintptr_t)(0x1000 + 16 * ++handles); return 0; }
Result cuStreamDestroy_v2(Any s) { TOLD(cuStreamDestroy_v2); (void)s; held--; return 0; }
Result cuStreamSynchronize(Any s) { (void)s; return 0; }
Result cuStreamWaitEvent(Any s, Any e, unsigned f) { TOLD(cuStreamWaitEvent); (void)s; (void)e; return (int)f; }
Result cuEventCreate(Any* e, unsigned flags) { TOLD(cuEventCreate); if (flags != 3) return 1; held++; *e = (Any)(uintptr_t)(0x1000 + 16 * ++handles); return 0; }
Result cuEventDestroy_v2(Any e) { TOLD(cuEventDestroy_v2); (void)e; held--; return 0; }
Result cuEventRecord(Any e, Any s) { TOLD(cuEventRecord); (void)e; (void)s; return 0; }
Result cuEventSynchronize(Any e) { TOLD(cuEventSynchronize); (void)e; return 0; }
Result cuStreamBeginCapture_v2(Any s, int mode) { TOLD(cuStreamBeginCapture_v2); (void)s; is_capturing = 1; count_recorded = 0; return mode == 1 ? 0 : 1; }
Result cuStreamEndCapture(Any s, Any* g) { TOLD(cuStreamEndCapture); (void)s; is_capturing = 0; held++; *g = (Any)0x77; return 0; }
Result cuGraphInstantiateWithFlags(Any* x, Any g, unsigned long long f) { TOLD(cuGraphInstantiateWithFlags); (void)g; held++; *x = (Any)0x88; return (int)f; }
Result cuGraphLaunch(Any x, Any s) { TOLD(cuGraphLaunch); (void)x; (void)s; for (int i = 0; i < count_recorded; i++) memcpy(recorded[i].to, recorded[i].from, recorded[i].bytes); return 0; }
Result cuGraphDestroy(Any g) { TOLD(cuGraphDestroy); (void)g; held--; return 0; }
Result cuGraphExecDestroy(Any x) { TOLD(cuGraphExecDestroy); (void)x; held--; return 0; }
Result cuGetErrorString(int code, const char** text) { static char t[32]; snprintf(t, sizeof t, "error %d", code); *text = t; return 0; }
Result cuGetErrorName(int code, const char** text) { return cuGetErrorString(code, text); }

/* the bindings ask for what they need by its name, without the version that its symbol has */
Result cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    (void)version; (void)flags; if (status) *status = 0;
    static const char* ends[] = {"", "_v2", "_v3", "_v4", "WithFlags"};
    for (int i = 0; i < 5; i++) {
        char whole[128];
        snprintf(whole, sizeof whole, "%s%s", name, ends[i]);
        Any self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        if ((*found = dlsym(self, whole))) return 0;
    }
    *found = NULL; return kNotFound;
}
