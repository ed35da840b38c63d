/* A stand-in for the driver's library: it notes what it is told, one line a call, and runs nothing. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int Result;
enum { kDone = 0, kInvalidDevice = 101, kNotFound = 500, kMajor = 75, kMinor = 76, kArgumentBytes = 16 };

static Result init(unsigned flags) { return flags ? kInvalidDevice : kDone; }

static Result device(int* found, int number) {
    *found = number;
    return number ? kInvalidDevice : kDone;
}

static Result attribute(int* value, int name, int of) {
    *value = name == kMajor ? 8 : name == kMinor ? 6 : 0;
    return of ? kInvalidDevice : kDone;
}

static Result load(void** module, const void* image) {
    fprintf(stderr, "load %.4s\n", (const char*)image);
    *module = (void*)0x1234;
    return kDone;
}

static Result unload(void* module) {
    fprintf(stderr, "unload %p\n", module);
    return kDone;
}

static Result function(void** found, void* module, const char* name) {
    fprintf(stderr, "function %p %s\n", module, name);
    *found = (void*)0x77;
    return strcmp(name, "missing") ? kDone : kNotFound;
}

static Result launch(void* run, unsigned x, unsigned y, unsigned z, unsigned wide, unsigned high, unsigned deep,
                     unsigned shared, void* stream, void** parameters, void** further) {
    fprintf(stderr, "launch %p %u %u %u %u %u %u %u %p %d ", run, x, y, z, wide, high, deep, shared, stream, !further);
    for (int i = 0; i < kArgumentBytes; i++) fprintf(stderr, "%02x", ((unsigned char*)parameters[0])[i]);
    fprintf(stderr, "\n");
    return kDone;
}

static const struct {
    const char* name;
    void* function;
} kFunctions[] = {
    {"cuInit", (void*)init},           {"cuDeviceGet", (void*)device},
    {"cuModuleLoadData", (void*)load}, {"cuDeviceGetAttribute", (void*)attribute},
    {"cuModuleUnload", (void*)unload}, {"cuModuleGetFunction", (void*)function},
    {"cuLaunchKernel", (void*)launch},
};

Result cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    (void)version, (void)flags;
    *found = NULL;
    for (unsigned i = 0; i < sizeof kFunctions / sizeof *kFunctions; i++)
        if (!strcmp(kFunctions[i].name, name)) *found = kFunctions[i].function;
    if (status) *status = *found ? 0 : 1;
    return *found ? kDone : kNotFound;
}
