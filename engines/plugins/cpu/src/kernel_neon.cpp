// NEON, which every aarch64 has: CNT counts the bits of each byte.
//
// A register holds the words of four channels. EOR, CNT and an ADD of bytes do 128 multiply-accumulates; bytes hold 31
// words of at most 8 before UADDLP and UADALP widen them, and what is widened is a channel again: no sum across lanes.
#include <arm_neon.h>

#include <cstring>

#include "kernel.hpp"

namespace bnn {
namespace {

constexpr int kLanes = 4;
constexpr int kBlocks = 4;   // of four channels, beside four pixels: 16 sums, 4 weights and their like in 32 registers
constexpr int kSteps = 31;   // words: at most 248 in a byte

bool usable() { return true; }

std::size_t prepared_bytes(int channels, int words) {
    return static_cast<std::size_t>(rounded_up(channels, kLanes)) * words * 4;
}

// [channels / 4][words][4]
void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    auto* to = static_cast<std::uint32_t*>(prepared);
    std::memset(to, 0, prepared_bytes(channels, words));
    for (int channel = 0; channel < channels; ++channel)
        for (int word = 0; word < words; ++word)
            to[(static_cast<std::size_t>(channel / kLanes) * words + word) * kLanes + channel % kLanes] =
                weights[static_cast<std::size_t>(channel) * words + word];
}

inline void store(uint8x16_t bytes, std::int32_t total, std::int32_t* dots, bool first) {
    const int32x4_t found = vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(bytes)));
    vst1q_s32(dots, vsubq_s32(first ? vdupq_n_s32(total) : vld1q_s32(dots), vshlq_n_s32(found, 1)));
}

template <int Pixels, int Blocks>
void tile(
    const std::uint32_t* rows, const std::uint32_t* weights, int words, std::int32_t total, std::int32_t* dots, int stride) {
    for (int begin = 0; begin < words; begin += kSteps) {
        const int end = words < begin + kSteps ? words : begin + kSteps;
        uint8x16_t bytes[Pixels][Blocks];
        for (auto& pixel : bytes)
            for (auto& block : pixel) block = vdupq_n_u8(0);
        for (int k = begin; k < end; ++k) {
            uint8x16_t weight[Blocks];
            for (int b = 0; b < Blocks; ++b)
                weight[b] = vreinterpretq_u8_u32(vld1q_u32(weights + (static_cast<std::size_t>(b) * words + k) * kLanes));
            for (int p = 0; p < Pixels; ++p) {
                const uint8x16_t bits = vreinterpretq_u8_u32(vld1q_dup_u32(rows + static_cast<std::size_t>(p) * words + k));
                for (int b = 0; b < Blocks; ++b)
                    bytes[p][b] = vaddq_u8(bytes[p][b], vcntq_u8(veorq_u8(bits, weight[b])));
            }
        }
        for (int p = 0; p < Pixels; ++p)
            for (int b = 0; b < Blocks; ++b)
                store(bytes[p][b], total, dots + static_cast<std::size_t>(p) * stride + b * kLanes, begin == 0);
    }
}

template <int Blocks>
void column(
    const std::uint32_t* rows, int pixels, const std::uint32_t* weights, int words, std::int32_t total, std::int32_t* dots,
    int stride) {
    const auto run = [&](auto tile_of, int from) {
        tile_of(
            rows + static_cast<std::size_t>(from) * words, weights, words, total,
            dots + static_cast<std::size_t>(from) * stride, stride);
    };
    int p = 0;
    for (; p + 4 <= pixels; p += 4) run(tile<4, Blocks>, p);
    if (pixels - p == 3) run(tile<3, Blocks>, p);
    if (pixels - p == 2) run(tile<2, Blocks>, p);
    if (pixels - p == 1) run(tile<1, Blocks>, p);
}

void multiply(
    const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t total, std::int32_t* dots,
    int stride) {
    const auto* from = static_cast<const std::uint32_t*>(rows);
    const auto* table = static_cast<const std::uint32_t*>(weights);
    const std::size_t block = static_cast<std::size_t>(words) * kLanes;
    const int blocks = rounded_up(channels, kLanes) / kLanes;
    int b = 0;
    for (; b + kBlocks <= blocks; b += kBlocks)
        column<kBlocks>(from, pixels, table + b * block, words, total, dots + b * kLanes, stride);
    for (; b < blocks; ++b) column<1>(from, pixels, table + b * block, words, total, dots + b * kLanes, stride);
}

// Four channels of a pixel at a time; their bits are the sum of what the comparison leaves of 1, 2, 4 and 8.
void threshold(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step) {
    const int whole = channels / 32 * 32;
    const std::uint32_t powers[4] = {1, 2, 4, 8};
    const uint32x4_t bits = vld1q_u32(powers);
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int first = 0; first < whole; first += 32) {
            const std::int32_t* from = dots + static_cast<std::size_t>(pixel) * stride + first;
            std::uint32_t word = 0;
            for (int i = 0; i < 32; i += 4) {
                const uint32x4_t below = vcltq_s32(vld1q_s32(from + i), vld1q_s32(thresholds + first + i));
                word |= vaddvq_u32(vandq_u32(below, bits)) << i;
            }
            words[pixel * step + first / 32] = word ^ flips[first / 32];
        }
    if (whole < channels)
        threshold_plainly(
            dots + whole, pixels, stride, channels - whole, thresholds + whole, flips + whole / 32, words + whole / 32, step);
}

}  // namespace

const Kernel neon_kernel{"neon", usable, kLanes, prepared_bytes, prepare, nullptr, nullptr, multiply, finish_plainly, threshold, pack_plainly};

}  // namespace bnn
