// What Python calls by ctypes: which kernels there are, which ran, and each of them alone, for tests and benchmarks.
#include "convolution.hpp"
#include "dispatch.hpp"
#include "pack.hpp"

#define BNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const bnn::Kernel* at(int index) {
    for (int i = 0; bnn::compiled()[i] != nullptr; ++i)
        if (i == index) return bnn::compiled()[i];
    return nullptr;
}

bnn::Geometry geometry_of(const int* shape) {
    return {
        shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6], shape[7], shape[8], shape[9], shape[10],
        shape[11], shape[12], shape[13], shape[14], shape[15] != 0, shape[16] != 0};
}

void one_part(std::size_t count, const std::function<void(std::size_t, std::size_t)>& work) { work(0, count); }

}  // namespace

// Name of a kernel that was compiled, the fastest first; none beyond the last.
BNN_EXPORT const char* bnn_kernel_name(int index) {
    const bnn::Kernel* kernel = at(index);
    return kernel != nullptr ? kernel->name : nullptr;
}

BNN_EXPORT int bnn_kernel_usable(int index) { return at(index) != nullptr && at(index)->usable(); }

BNN_EXPORT std::uint64_t bnn_kernel_runs(int index) { return at(index) != nullptr ? bnn::runs_of(*at(index)) : 0; }

BNN_EXPORT int bnn_pin(const char* name) { return bnn::pin(name); }

BNN_EXPORT const char* bnn_chosen() { return bnn::chosen().name; }

// By the kernel that is chosen or pinned.
BNN_EXPORT void bnn_pack(
    const float* values, const float* thresholds, int strict, int channels, std::size_t places, std::uint32_t* bits) {
    bnn::chosen().pack(values, thresholds, strict != 0, channels, places, 0, places, bits);
}

// `shape`: the fields of Geometry in their order; false where the kernel is not usable here.
BNN_EXPORT int bnn_convolve(
    int index, const int* shape, const std::uint32_t* bits, std::size_t batch, const std::uint32_t* weights,
    const float* multiplier, const float* bias, const float* activation, int columns, int channels_last, float* out) {
    const bnn::Kernel* kernel = at(index);
    if (kernel == nullptr || !kernel->usable()) return 0;
    const bnn::Geometry g = geometry_of(shape);
    const bnn::Floats floats{multiplier, bias, {activation, columns}, out, channels_last != 0};
    bnn::Convolution(g, weights, *kernel).run(g, bits, batch, floats, one_part);
    return 1;
}

// The same, to bits.
BNN_EXPORT int bnn_threshold(
    int index, const int* shape, const std::uint32_t* bits, std::size_t batch, const std::uint32_t* weights,
    const std::int32_t* thresholds, const std::uint32_t* flips, std::uint32_t* out) {
    const bnn::Kernel* kernel = at(index);
    if (kernel == nullptr || !kernel->usable()) return 0;
    const bnn::Geometry g = geometry_of(shape);
    bnn::Convolution(g, weights, *kernel).run(g, bits, batch, bnn::Bits{thresholds, flips, out}, one_part);
    return 1;
}
