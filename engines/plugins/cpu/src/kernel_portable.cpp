// Any processor: two words at a time, by the compiler's own population count.
#include <cstring>

#include "kernel.hpp"

namespace bnn {
namespace {

bool usable() { return true; }

std::size_t plain_bytes(int channels, int words) { return static_cast<std::size_t>(channels) * words * 4; }

void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    std::memcpy(prepared, weights, plain_bytes(channels, words));
}

std::int32_t differing(const std::uint32_t* one, const std::uint32_t* other, int words) {
    std::int32_t found = 0;
    int i = 0;
    for (; i + 2 <= words; i += 2) {
        std::uint64_t a, b;
        std::memcpy(&a, one + i, 8);
        std::memcpy(&b, other + i, 8);
        found += __builtin_popcountll(a ^ b);
    }
    return i < words ? found + __builtin_popcount(one[i] ^ other[i]) : found;
}

void multiply(
    const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t total, std::int32_t* dots,
    int stride) {
    const auto* row = static_cast<const std::uint32_t*>(rows);
    const auto* weight = static_cast<const std::uint32_t*>(weights);
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int channel = 0; channel < channels; ++channel)
            dots[static_cast<std::size_t>(pixel) * stride + channel] =
                total - 2 * differing(row + static_cast<std::size_t>(pixel) * words, weight + static_cast<std::size_t>(channel) * words, words);
}

}  // namespace

void finish_plainly(
    const std::int32_t* dots, int pixels, int stride, int channels, const float* multiplier, const float* bias,
    const float* added, float* out, std::size_t places) {
    for (int channel = 0; channel < channels; ++channel)
        for (int pixel = 0; pixel < pixels; ++pixel) {
            const std::size_t place = channel * places + pixel;
            const float found =
                static_cast<float>(dots[static_cast<std::size_t>(pixel) * stride + channel]) * multiplier[channel] + bias[channel];
            out[place] = added != nullptr ? found + added[place] : found;
        }
}

void threshold_plainly(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step) {
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int first = 0; first < channels; first += 32) {
            const int count = channels - first < 32 ? channels - first : 32;
            std::uint32_t word = 0;
            for (int i = 0; i < count; ++i)
                word |= static_cast<std::uint32_t>(
                            dots[static_cast<std::size_t>(pixel) * stride + first + i] < thresholds[first + i])
                        << i;
            words[pixel * step + first / 32] = word ^ flips[first / 32];
        }
}

const Kernel portable_kernel{"portable", usable, 1, plain_bytes, prepare, nullptr, nullptr, multiply, finish_plainly, threshold_plainly, pack_plainly};

}  // namespace bnn
