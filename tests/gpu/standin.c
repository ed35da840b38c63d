/* A stand-in for the driver's library, of one device whose memory is the host's: it holds who calls it to the rules of
   CUDA that are easily broken, and hands launches over to a function that it was given. Handles are never used again. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int Result;
typedef uint64_t Handle;
typedef void (*Launch)(const char* entry, const unsigned* grid, unsigned block, unsigned shared_bytes, const void* argument);
enum { kDone = 0, kInvalidValue = 1, kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500 };
enum { kInvalidImage = 200, kCaptureUnsupported = 900, kMajor = 75, kMinor = 76 };
enum { kThings = 1 << 16, kArgumentBytes = 256, kTotalBytes = 1 << 30, kSources = 3 };
enum Kind { kNothing, kMemory, kModule, kFunction, kStream, kEvent, kGraph, kReady };

typedef struct {
    Handle function, stream;
    unsigned grid[3], block, shared_bytes;
    unsigned char argument[kArgumentBytes];
} Node;

/* Anything that has a handle, which for memory is its address. */
typedef struct {
    enum Kind kind;
    Handle handle;
    size_t bytes, count; /* of memory, or of a function's argument; of nodes */
    double time_ms;      /* of events */
    char name[64];       /* of functions */
    Node* nodes;         /* of graphs */
} Thing;

static Thing things[kThings];
static int most; /* of them have been there at once */
static int is_ignoring;
static Handle last_handle = 0x1000, context_current;
static Thing* capturing; /* into this graph */
static size_t used_bytes;
static Launch run_launch;
static struct {
    char source[16];
    size_t bytes;
} arguments[kSources];

void standin_set_launch(Launch launch) { run_launch = launch; }

/* Launches are taken and not run. */
void standin_ignore_launches(void) { is_ignoring = 1; }

/* What the argument takes of kernels whose names begin so; nobody tells a driver that. */
void standin_set_argument(int number, const char* source, size_t bytes) {
    snprintf(arguments[number].source, sizeof arguments[number].source, "%s_", source);
    arguments[number].bytes = bytes;
}

size_t standin_size_of(Handle memory) {
    for (int i = 0; i < most; i++)
        if (things[i].kind == kMemory && things[i].handle == memory) return things[i].bytes;
    return 0;
}

/* How many things are left that somebody has to give back; functions go with their modules. */
int standin_left(void) {
    int count = 0;
    for (int i = 0; i < most; i++) count += things[i].kind != kNothing && things[i].kind != kFunction;
    return count;
}

static Thing* made(enum Kind kind, Handle handle) {
    for (int i = 0; i < kThings; i++) {
        if (things[i].kind != kNothing) continue;
        memset(&things[i], 0, sizeof *things);
        things[i].kind = kind;
        most = i < most ? most : i + 1;
        things[i].handle = handle ? handle : (last_handle += 16);
        return &things[i];
    }
    abort();
}

static Thing* thing(enum Kind kind, Handle handle) {
    for (int i = 0; i < most; i++)
        if (things[i].kind == kind && things[i].handle == handle) return &things[i];
    return NULL;
}

static Result gone(enum Kind kind, Handle handle) {
    Thing* found = thing(kind, handle);
    if (!found) return kInvalidHandle;
    free(found->nodes);
    found->kind = kNothing;
    return kDone;
}

/* What nothing but a launch may do: without a context, or while a stream is captured. */
static Result allowed(void) { return !context_current ? kInvalidContext : capturing ? kCaptureUnsupported : kDone; }

#define REQUIRE(condition, otherwise) \
    if (!(condition)) return otherwise
#define REQUIRE_ALLOWED \
    if (allowed()) return allowed()

static Result init(unsigned flags) { return flags ? kInvalidValue : kDone; }
static Result device(int* found, int number) {
    *found = number;
    return number ? kInvalidValue : kDone;
}
static Result attribute(int* value, int name, int of) {
    *value = name == kMajor ? 8 : name == kMinor ? 6 : 0;
    return of ? kInvalidValue : kDone;
}
static Result retain(Handle* context, int of) {
    *context = 0xC0;
    return of ? kInvalidValue : kDone;
}
static Result release(int of) {
    context_current = 0;
    return of ? kInvalidValue : kDone;
}
static Result set_current(Handle context) {
    context_current = context;
    return context == 0xC0 ? kDone : kInvalidContext;
}

static Result allocate(Handle* memory, size_t bytes) {
    REQUIRE_ALLOWED;
    REQUIRE(bytes, kInvalidValue);
    *memory = (Handle)malloc(bytes);
    made(kMemory, *memory)->bytes = bytes;
    used_bytes += bytes;
    return kDone;
}
static Result release_memory(Handle memory) {
    REQUIRE_ALLOWED;
    const size_t bytes = standin_size_of(memory);
    REQUIRE(bytes, kInvalidValue);
    used_bytes -= bytes;
    free((void*)memory);
    return gone(kMemory, memory);
}
static Result to_device(Handle to, const void* from, size_t bytes) {
    REQUIRE_ALLOWED;
    REQUIRE(bytes <= standin_size_of(to), kInvalidValue);
    memcpy((void*)to, from, bytes);
    return kDone;
}
static Result from_device(void* to, Handle from, size_t bytes) {
    REQUIRE_ALLOWED;
    REQUIRE(bytes <= standin_size_of(from), kInvalidValue);
    memcpy(to, (const void*)from, bytes);
    return kDone;
}
static Result fill(Handle to, unsigned char value, size_t bytes) {
    REQUIRE_ALLOWED;
    REQUIRE(bytes <= standin_size_of(to), kInvalidValue);
    memset((void*)to, value, bytes);
    return kDone;
}
static Result memory_info(size_t* free_bytes, size_t* total_bytes) {
    REQUIRE_ALLOWED;
    *total_bytes = kTotalBytes, *free_bytes = kTotalBytes - used_bytes;
    return kDone;
}

static Result load(Handle* module, const char* image) {
    REQUIRE_ALLOWED;
    REQUIRE(!memcmp(image, "\x7f" "ELF", 4), kInvalidImage);
    *module = made(kModule, 0)->handle;
    return kDone;
}
static Result unload(Handle module) {
    REQUIRE_ALLOWED;
    return gone(kModule, module);
}
static Result function(Handle* found, Handle module, const char* name) {
    REQUIRE(thing(kModule, module), kInvalidHandle);
    for (int i = 0; i < kSources; i++) {
        if (!arguments[i].bytes || strncmp(arguments[i].source, name, strlen(arguments[i].source))) continue;
        Thing* entry = made(kFunction, 0);
        snprintf(entry->name, sizeof entry->name, "%s", name);
        entry->bytes = arguments[i].bytes;
        *found = entry->handle;
        return kDone;
    }
    return kNotFound;
}

static Result run(const Node* node) {
    const Thing* of = thing(kFunction, node->function);
    REQUIRE(of && (run_launch || is_ignoring), kInvalidHandle);
    if (!is_ignoring) run_launch(of->name, node->grid, node->block, node->shared_bytes, node->argument);
    return kDone;
}
static Result launch(Handle of, unsigned x, unsigned y, unsigned z, unsigned wide, unsigned high, unsigned deep,
                     unsigned shared_bytes, Handle stream, void** parameters, void** further) {
    REQUIRE(context_current, kInvalidContext);
    REQUIRE(thing(kStream, stream) && thing(kFunction, of), kInvalidHandle);
    REQUIRE(x && y && z && wide && high == 1 && deep == 1 && !further, kInvalidValue);
    Node node = {of, stream, {x, y, z}, wide, shared_bytes, {0}};
    memcpy(node.argument, parameters[0], thing(kFunction, of)->bytes);
    if (!capturing) return run(&node);
    capturing->nodes = realloc(capturing->nodes, (capturing->count + 1) * sizeof node);
    capturing->nodes[capturing->count++] = node;
    return kDone;
}

static Result new_stream(Handle* stream, unsigned flags) {
    REQUIRE_ALLOWED;
    REQUIRE(flags <= 1, kInvalidValue);
    *stream = made(kStream, 0)->handle;
    return kDone;
}
static Result synchronize(Handle stream) {
    REQUIRE_ALLOWED;
    return thing(kStream, stream) ? kDone : kInvalidHandle;
}
static Result end_stream(Handle stream) { return gone(kStream, stream); }
static Result begin_capture(Handle stream, int mode) {
    REQUIRE_ALLOWED;
    REQUIRE(thing(kStream, stream) && mode >= 0 && mode <= 2, kInvalidHandle);
    capturing = made(kGraph, 0);
    return kDone;
}
static Result end_capture(Handle stream, Handle* graph) {
    REQUIRE(capturing && thing(kStream, stream), kInvalidHandle);
    *graph = capturing->handle;
    capturing = NULL;
    return kDone;
}
static Result instantiate(Handle* ready, Handle graph, unsigned long long flags) {
    REQUIRE_ALLOWED;
    const Thing* of = thing(kGraph, graph);
    REQUIRE(of && !flags, kInvalidHandle);
    Thing* found = made(kReady, 0);
    found->count = of->count;
    found->nodes = malloc(of->count * sizeof(Node));
    memcpy(found->nodes, of->nodes, of->count * sizeof(Node));
    *ready = found->handle;
    return kDone;
}
static Result launch_graph(Handle ready, Handle stream) {
    REQUIRE_ALLOWED;
    const Thing* of = thing(kReady, ready);
    REQUIRE(of && thing(kStream, stream), kInvalidHandle);
    for (size_t i = 0; i < of->count; i++)
        if (run(&of->nodes[i])) return kInvalidHandle;
    return kDone;
}
static Result end_ready(Handle ready) { return gone(kReady, ready); }
static Result end_graph(Handle graph) { return gone(kGraph, graph); }

static Result new_event(Handle* event, unsigned flags) {
    REQUIRE(!flags, kInvalidValue);
    *event = made(kEvent, 0)->handle;
    return kDone;
}
static Result record(Handle event, Handle stream) {
    REQUIRE(thing(kEvent, event) && thing(kStream, stream), kInvalidHandle);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    thing(kEvent, event)->time_ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return kDone;
}
static Result wait_event(Handle event) { return thing(kEvent, event) ? kDone : kInvalidHandle; }
static Result elapsed(float* ms, Handle begin, Handle end) {
    REQUIRE(thing(kEvent, begin) && thing(kEvent, end), kInvalidHandle);
    *ms = (float)(thing(kEvent, end)->time_ms - thing(kEvent, begin)->time_ms);
    return kDone;
}
static Result end_event(Handle event) { return gone(kEvent, event); }

static const struct {
    const char* name;
    void* function;
} kFunctions[] = {
    {"cuInit", init}, {"cuDeviceGet", device}, {"cuDeviceGetAttribute", attribute},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuDevicePrimaryCtxRelease", release}, {"cuCtxSetCurrent", set_current},
    {"cuMemAlloc", allocate}, {"cuMemFree", release_memory}, {"cuMemcpyHtoD", to_device},
    {"cuMemcpyDtoH", from_device}, {"cuMemsetD8", fill}, {"cuMemGetInfo", memory_info},
    {"cuModuleLoadData", load}, {"cuModuleUnload", unload}, {"cuModuleGetFunction", function},
    {"cuLaunchKernel", launch}, {"cuStreamCreate", new_stream}, {"cuStreamSynchronize", synchronize},
    {"cuStreamDestroy", end_stream}, {"cuStreamBeginCapture", begin_capture}, {"cuStreamEndCapture", end_capture},
    {"cuGraphInstantiate", instantiate}, {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphLaunch", launch_graph},
    {"cuGraphExecDestroy", end_ready}, {"cuGraphDestroy", end_graph}, {"cuEventCreate", new_event},
    {"cuEventRecord", record}, {"cuEventSynchronize", wait_event}, {"cuEventElapsedTime", elapsed},
    {"cuEventDestroy", end_event},
};

Result cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    (void)version, (void)flags;
    *found = NULL;
    for (unsigned i = 0; i < sizeof kFunctions / sizeof *kFunctions; i++)
        if (!strcmp(kFunctions[i].name, name)) *found = kFunctions[i].function;
    if (status) *status = *found ? 0 : 1;
    return *found ? kDone : kNotFound;
}
