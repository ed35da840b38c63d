// AVX2, by look-up of four bits at a time.
//
// For four bits of a pixel there is a table of 16 bytes: how many bits differ from each of the 16 values that four bits
// of a weight may have. It is broadcast into both halves of a register, and one vpshufb looks up 32 channels at once.
// Two instructions, vpshufb and vpaddb, do 128 multiply-accumulates; vpshufb has two ports (one before Ice Lake), so 256
// a cycle are the most. Bytes hold 63 steps of at most 4 before they are widened.
#include <immintrin.h>

#include <array>
#include <cstring>

#include "kernel.hpp"

namespace bnn {
namespace {

constexpr int kLanes = 32;
constexpr int kNibbles = 8;  // of a word
constexpr int kSteps = 56;   // 7 words of 8 nibbles: at most 224 in a byte

struct alignas(64) Tables {
    std::array<std::uint8_t, 256> bytes;
    Tables() {
        for (int pixel = 0; pixel < 16; ++pixel)
            for (int weight = 0; weight < 16; ++weight)
                bytes[pixel * 16 + weight] = static_cast<std::uint8_t>(__builtin_popcount(pixel ^ weight));
    }
};

const Tables kTables;

bool usable() { return __builtin_cpu_supports("avx2"); }

std::size_t prepared_bytes(int channels, int words) {
    return static_cast<std::size_t>(rounded_up(channels, kLanes)) * words * kNibbles;
}

// [channels / 32][nibbles][32]: one byte holds one nibble of one channel.
void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    auto* to = static_cast<std::uint8_t*>(prepared);
    std::memset(to, 0, prepared_bytes(channels, words));
    const int nibbles = words * kNibbles;
    for (int channel = 0; channel < channels; ++channel)
        for (int nibble = 0; nibble < nibbles; ++nibble) {
            const std::uint32_t word = weights[static_cast<std::size_t>(channel) * words + nibble / kNibbles];
            to[(static_cast<std::size_t>(channel / kLanes) * nibbles + nibble) * kLanes + channel % kLanes] =
                static_cast<std::uint8_t>(word >> (nibble % kNibbles * 4) & 15);
        }
}

// Offsets of tables, so that the inner loop only adds them to an address: a byte for every four bits, 16 times their value.
void expand(const std::uint32_t* words, std::size_t count, void* prepared) {
    auto* to = static_cast<std::uint8_t*>(prepared);
    const __m256i high = _mm256_set1_epi8(static_cast<char>(0xf0));
    const __m256i odd = _mm256_set1_epi16(static_cast<short>(0xff00));
    const __m256i twice = _mm256_setr_epi8(
        0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    std::size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + i));
        const __m256i halves = _mm256_permute4x64_epi64(_mm256_castsi128_si256(four), 0x50);  // words 0, 1 and 2, 3
        const __m256i bytes = _mm256_shuffle_epi8(halves, twice);
        const __m256i lower = _mm256_and_si256(_mm256_slli_epi16(bytes, 4), high);
        const __m256i found = _mm256_blendv_epi8(lower, _mm256_and_si256(bytes, high), odd);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kNibbles), found);
    }
    for (; i < count; ++i)
        for (int nibble = 0; nibble < kNibbles; ++nibble)
            to[i * kNibbles + nibble] = static_cast<std::uint8_t>((words[i] >> (nibble * 4) & 15) << 4);
}

// In place: gcc 12 adds into another register and moves it back, eight moves among 26 instructions.
inline void add_bytes(__m256i& sum, __m256i more) { __asm__("vpaddb %1, %0, %0" : "+x"(sum) : "x"(more)); }

inline void widen(__m256i bytes, __m256i sums[2]) {
    const __m256i zero = _mm256_setzero_si256();
    sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(bytes, zero));
    sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(bytes, zero));
}

// unpacklo and unpackhi work in halves of 16 bytes: channels 0-7, 16-23 and 8-15, 24-31.
inline void store(const __m256i sums[2], std::int32_t total, std::int32_t* dots, bool first) {
    const __m128i parts[4] = {
        _mm256_castsi256_si128(sums[0]), _mm256_castsi256_si128(sums[1]), _mm256_extracti128_si256(sums[0], 1),
        _mm256_extracti128_si256(sums[1], 1)};
    for (int i = 0; i < 4; ++i) {
        auto* to = reinterpret_cast<__m256i*>(dots + i * 8);
        const __m256i twice = _mm256_slli_epi32(_mm256_cvtepu16_epi32(parts[i]), 1);
        _mm256_storeu_si256(to, _mm256_sub_epi32(first ? _mm256_set1_epi32(total) : _mm256_loadu_si256(to), twice));
    }
}

constexpr int kWidest = 65528 / 4 / kSteps * kSteps;  // nibbles of which 16 bits hold the sum

template <int Pixels, int Blocks>
void tile(
    const std::uint8_t* rows, std::size_t row, const std::uint8_t* weights, int nibbles, std::int32_t total,
    std::int32_t* dots, int stride) {
    for (int begin = 0; begin < nibbles; begin += kWidest) {
        const int end = nibbles < begin + kWidest ? nibbles : begin + kWidest;
        __m256i sums[Pixels][Blocks][2];
        for (auto& pixel : sums)
            for (auto& block : pixel) block[0] = block[1] = _mm256_setzero_si256();
        for (int start = begin; start < end; start += kSteps) {
            const int stop = end < start + kSteps ? end : start + kSteps;
            __m256i bytes[Pixels][Blocks];
            for (auto& pixel : bytes)
                for (auto& block : pixel) block = _mm256_setzero_si256();
            for (int k = start; k < stop; ++k) {
                __m256i weight[Blocks];
                for (int b = 0; b < Blocks; ++b) {
                    weight[b] = _mm256_load_si256(
                        reinterpret_cast<const __m256i*>(weights + (static_cast<std::size_t>(b) * nibbles + k) * kLanes));
                    __asm__("" : "+x"(weight[b]));  // in a register: loads are the narrowest port, and each pixel reads it
                }
                for (int p = 0; p < Pixels; ++p) {
                    const __m256i table = _mm256_broadcastsi128_si256(
                        _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.bytes.data() + rows[p * row + k])));
                    for (int b = 0; b < Blocks; ++b)
                        add_bytes(bytes[p][b], _mm256_shuffle_epi8(table, weight[b]));
                }
            }
            for (int p = 0; p < Pixels; ++p)
                for (int b = 0; b < Blocks; ++b) widen(bytes[p][b], sums[p][b]);
        }
        for (int p = 0; p < Pixels; ++p)
            for (int b = 0; b < Blocks; ++b)
                store(sums[p][b], total, dots + static_cast<std::size_t>(p) * stride + b * kLanes, begin == 0);
    }
}

template <int Blocks>
void column(
    const std::uint8_t* rows, std::size_t row, int pixels, const std::uint8_t* weights, int nibbles, std::int32_t total,
    std::int32_t* dots, int stride) {
    const auto run = [&](auto tile_of, int from) {
        tile_of(rows + from * row, row, weights, nibbles, total, dots + static_cast<std::size_t>(from) * stride, stride);
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
    const auto* from = static_cast<const std::uint8_t*>(rows);
    const auto* table = static_cast<const std::uint8_t*>(weights);
    const int nibbles = words * kNibbles, blocks = rounded_up(channels, kLanes) / kLanes;
    const std::size_t row = static_cast<std::size_t>(nibbles), block_bytes = static_cast<std::size_t>(nibbles) * kLanes;
    int b = 0;
    for (; b + 2 <= blocks; b += 2)
        column<2>(from, row, pixels, table + b * block_bytes, nibbles, total, dots + b * kLanes, stride);
    if (b < blocks) column<1>(from, row, pixels, table + b * block_bytes, nibbles, total, dots + b * kLanes, stride);
}

// Eight pixels of eight channels, turned.
void turn(
    const std::int32_t* dots, int stride, const float* multiplier, const float* bias, float* out, std::size_t places) {
    const __m256 scale = _mm256_loadu_ps(multiplier), add = _mm256_loadu_ps(bias);
    __m256 row[8], pair[8], quad[8];
    for (int i = 0; i < 8; ++i) {
        const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(dots + static_cast<std::size_t>(i) * stride));
        row[i] = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale), add);
    }
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * places, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * places, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
}

}  // namespace

void finish_by_avx2(
    const std::int32_t* dots, int pixels, int stride, int channels, const float* multiplier, const float* bias, float* out,
    std::size_t places) {
    const int whole_pixels = pixels / 8 * 8, whole_channels = channels / 8 * 8;
    for (int channel = 0; channel < whole_channels; channel += 8)
        for (int pixel = 0; pixel < whole_pixels; pixel += 8)
            turn(
                dots + static_cast<std::size_t>(pixel) * stride + channel, stride, multiplier + channel, bias + channel,
                out + channel * places + pixel, places);
    finish_plainly(
        dots + static_cast<std::size_t>(whole_pixels) * stride, pixels - whole_pixels, stride, whole_channels, multiplier, bias,
        out + whole_pixels, places);
    finish_plainly(
        dots + whole_channels, pixels, stride, channels - whole_channels, multiplier + whole_channels, bias + whole_channels,
        out + whole_channels * places, places);
}

void threshold_by_avx2(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step) {
    const int whole = channels / 32 * 32;
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int first = 0; first < whole; first += 32) {
            const std::int32_t* from = dots + static_cast<std::size_t>(pixel) * stride + first;
            std::uint32_t word = 0;
            for (int i = 0; i < 32; i += 8) {
                const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thresholds + first + i));
                const __m256i below = _mm256_cmpgt_epi32(limit, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
                word |= static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below))) << i;
            }
            words[pixel * step + first / 32] = word ^ flips[first / 32];
        }
    if (whole < channels)
        threshold_plainly(
            dots + whole, pixels, stride, channels - whole, thresholds + whole, flips + whole / 32, words + whole / 32, step);
}

const Kernel avx2_kernel{"avx2", usable, kLanes, prepared_bytes, prepare, kNibbles, expand, multiply, finish_by_avx2, threshold_by_avx2};

}  // namespace bnn
