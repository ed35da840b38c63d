// AVX-512 with VPOPCNTDQ: 16 channels in a register, three instructions for 512 multiply-accumulates.
#include <immintrin.h>

#include <cstring>

#include "kernel.hpp"

namespace bnn {
namespace {

constexpr int kLanes = 16;

bool usable() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx2"); }

std::size_t prepared_bytes(int channels, int words) {
    return static_cast<std::size_t>(rounded_up(channels, kLanes)) * words * 4;
}

// [channels / 16][words][16]
void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    auto* to = static_cast<std::uint32_t*>(prepared);
    std::memset(to, 0, prepared_bytes(channels, words));
    for (int channel = 0; channel < channels; ++channel)
        for (int word = 0; word < words; ++word)
            to[(static_cast<std::size_t>(channel / kLanes) * words + word) * kLanes + channel % kLanes] =
                weights[static_cast<std::size_t>(channel) * words + word];
}

template <int Pixels, int Blocks>
void tile(
    const std::uint32_t* rows, const std::uint32_t* weights, int words, std::int32_t total, std::int32_t* dots, int stride) {
    __m512i sums[Pixels][Blocks];
    for (auto& pixel : sums)
        for (auto& block : pixel) block = _mm512_setzero_si512();
    for (int k = 0; k < words; ++k) {
        __m512i weight[Blocks];
        for (int b = 0; b < Blocks; ++b)
            weight[b] = _mm512_load_si512(weights + (static_cast<std::size_t>(b) * words + k) * kLanes);
        for (int p = 0; p < Pixels; ++p) {
            const __m512i bits = _mm512_set1_epi32(static_cast<int>(rows[static_cast<std::size_t>(p) * words + k]));
            for (int b = 0; b < Blocks; ++b)
                sums[p][b] = _mm512_add_epi32(sums[p][b], _mm512_popcnt_epi32(_mm512_xor_si512(bits, weight[b])));
        }
    }
    for (int p = 0; p < Pixels; ++p)
        for (int b = 0; b < Blocks; ++b)
            _mm512_storeu_si512(
                dots + static_cast<std::size_t>(p) * stride + b * kLanes,
                _mm512_sub_epi32(_mm512_set1_epi32(total), _mm512_add_epi32(sums[p][b], sums[p][b])));
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
    for (; b + 4 <= blocks; b += 4) column<4>(from, pixels, table + b * block, words, total, dots + b * kLanes, stride);
    for (; b < blocks; ++b) column<1>(from, pixels, table + b * block, words, total, dots + b * kLanes, stride);
}

}  // namespace

const Kernel avx512_kernel{"avx512", usable, kLanes, prepared_bytes, prepare, nullptr, nullptr, multiply, finish_by_avx2, threshold_by_avx2,
    pack_by_avx2};

}  // namespace bnn
