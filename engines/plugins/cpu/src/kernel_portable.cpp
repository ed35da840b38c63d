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

std::size_t row_bytes(int words) { return static_cast<std::size_t>(words) * 4; }

void prepare_row(const std::uint32_t* row, int words, void* prepared) { std::memcpy(prepared, row, row_bytes(words)); }

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

void count(
    const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t* counts, int stride) {
    const auto* row = static_cast<const std::uint32_t*>(rows);
    const auto* weight = static_cast<const std::uint32_t*>(weights);
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int channel = 0; channel < channels; ++channel)
            counts[static_cast<std::size_t>(pixel) * stride + channel] =
                differing(row + static_cast<std::size_t>(pixel) * words, weight + static_cast<std::size_t>(channel) * words, words);
}

}  // namespace

const Kernel portable_kernel{"portable", usable, 1, plain_bytes, prepare, row_bytes, prepare_row, count};

}  // namespace bnn
