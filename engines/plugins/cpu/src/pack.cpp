#include "pack.hpp"

#include <algorithm>

namespace bnn {
namespace {

constexpr std::size_t kTile = 64;  // places at a time: 64 words of bits stay in registers or the nearest cache

template <bool Strict>
void gather(const float* values, float threshold, std::size_t count, std::uint32_t bit, std::uint32_t* bits) {
    for (std::size_t i = 0; i < count; ++i) {
        const bool positive = Strict ? values[i] > threshold : values[i] >= threshold;
        bits[i] |= positive ? 0u : bit;
    }
}

}  // namespace

void pack_plainly(
    const float* values, const float* thresholds, bool strict, int channels, std::size_t places, std::size_t first,
    std::size_t last, std::uint32_t* bits) {
    const int words = words_of(channels);
    for (std::size_t begin = first; begin < last; begin += kTile) {
        const std::size_t count = std::min(kTile, last - begin);
        for (int word = 0; word < words; ++word) {
            std::uint32_t found[kTile] = {};
            const int own = std::min(32, channels - word * 32);
            for (int i = 0; i < own; ++i) {
                const int channel = word * 32 + i;
                const float* from = values + static_cast<std::size_t>(channel) * places + begin;
                if (strict)
                    gather<true>(from, thresholds[channel], count, 1u << i, found);
                else
                    gather<false>(from, thresholds[channel], count, 1u << i, found);
            }
            for (std::size_t i = 0; i < count; ++i) bits[(begin + i) * words + word] = found[i];
        }
    }
}

}  // namespace bnn
