// Bits out of floats: a set bit is -1, and bits beyond the true channels are 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnn {

inline int words_of(int channels) { return (channels + 31) / 32; }

// values: [channels][places], places contiguous; bits: [places][words], of which places [first, last) are written. A bit
// is set where the value is not at least the threshold of its channel (with `strict`: not above it), so that NaN is -1, as
// Where(x >= t, 1, -1) has it.
using Pack = void(
    const float* values, const float* thresholds, bool strict, int channels, std::size_t places, std::size_t first,
    std::size_t last, std::uint32_t* bits);

Pack pack_plainly;

}  // namespace bnn
