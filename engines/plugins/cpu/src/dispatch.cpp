#include "dispatch.hpp"

#include <array>
#include <atomic>
#include <cstring>

namespace bnn {
namespace {

#if defined(__x86_64__)
constexpr std::array<const Kernel*, 4> kKernels{&avx512_kernel, &avx2_kernel, &portable_kernel, nullptr};
#elif defined(__aarch64__)
constexpr std::array<const Kernel*, 3> kKernels{&neon_kernel, &portable_kernel, nullptr};
#else
constexpr std::array<const Kernel*, 2> kKernels{&portable_kernel, nullptr};
#endif

std::array<std::atomic<std::uint64_t>, kKernels.size()> runs;
std::atomic<const Kernel*> pinned{nullptr};

const Kernel& fastest() {
    for (const Kernel* kernel : kKernels)
        if (kernel != nullptr && kernel->usable()) return *kernel;
    return portable_kernel;
}

}  // namespace

const Kernel& chosen() {
    static const Kernel& found = fastest();
    const Kernel* wanted = pinned.load(std::memory_order_acquire);
    return wanted != nullptr ? *wanted : found;
}

const Kernel* const* compiled() { return kKernels.data(); }

bool pin(const char* name) {
    if (*name == '\0') {
        pinned.store(nullptr, std::memory_order_release);
        return true;
    }
    for (const Kernel* kernel : kKernels)
        if (kernel != nullptr && std::strcmp(kernel->name, name) == 0 && kernel->usable()) {
            pinned.store(kernel, std::memory_order_release);
            return true;
        }
    return false;
}

void note_run(const Kernel& kernel) {
    for (std::size_t i = 0; i < kKernels.size(); ++i)
        if (kKernels[i] == &kernel) runs[i].fetch_add(1, std::memory_order_relaxed);
}

std::uint64_t runs_of(const Kernel& kernel) {
    for (std::size_t i = 0; i < kKernels.size(); ++i)
        if (kKernels[i] == &kernel) return runs[i].load(std::memory_order_relaxed);
    return 0;
}

}  // namespace bnn
