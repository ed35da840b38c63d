// One way to count differing bits: what every instruction set offers to the layers. No OpenVINO here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pack.hpp"

namespace bnn {

constexpr int kMostPixels = 32;  // of one product: their counts stay in the nearest cache

// out[channel * places + pixel] = dots[pixel * stride + channel] * multiplier[channel] + bias[channel], and the same place
// of `added` where it is not null; each operation rounds.
using ToFloats = void(
    const std::int32_t* dots, int pixels, int stride, int channels, const float* multiplier, const float* bias,
    const float* added, float* out, std::size_t places);

// Rows and weights are words of 32 bits; a set bit is -1, bits beyond the true channels are 0 in both.
struct Kernel {
    const char* name;
    bool (*usable)();
    // Channels that are counted side by side: counts of a pixel have a multiple of it.
    int lanes;
    // Bytes of the weights as `count` reads them, of `channels` rows of `words`.
    std::size_t (*prepared_bytes)(int channels, int words);
    void (*prepare)(const std::uint32_t* weights, int channels, int words, void* prepared);
    // Bytes of the rows of pixels as `multiply` reads them, and what writes them; none where it reads rows of words.
    std::size_t (*arranged_bytes)(int pixels, int words);
    void (*arrange)(const std::uint32_t* rows, int pixels, int words, void* arranged);
    // dots[pixel * stride + channel] = total - 2 * (bits that differ between the pixel's row and the channel's weights).
    // `stride` is `channels` rounded up to `lanes`; there are kMostPixels at most; prepared memory is aligned to 64 bytes.
    void (*multiply)(
        const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t total, std::int32_t* dots,
        int stride);
    ToFloats* finish;
    // Bit `channel` of words[pixel * step + channel / 32]: (dots[pixel * stride + channel] < thresholds[channel]) != flips.
    // Thresholds have `stride` entries, flips are words of bits; bits beyond the channels come out 0.
    void (*threshold)(
        const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
        const std::uint32_t* flips, std::uint32_t* words, std::size_t step);
    Pack* pack;
};

void threshold_plainly(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step);

ToFloats finish_plainly;

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel;
extern const Kernel avx512_kernel;
Pack pack_by_avx2;
ToFloats finish_by_avx2;
void threshold_by_avx2(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step);
#elif defined(__aarch64__)
extern const Kernel neon_kernel;
#endif

inline int rounded_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

}  // namespace bnn
