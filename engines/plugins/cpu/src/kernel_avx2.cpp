// AVX2, by look-up of four bits at a time, of two pixels at once.
//
// For four bits of each of two pixels there is a table of 16 bytes: for each of the 16 values that four bits of a weight
// may have, how many bits of the first pixel differ, and 16 times how many of the second. It is broadcast into both halves
// of a register, and one vpshufb looks up 32 channels: 256 multiply-accumulates. Three such bytes are added (at most 12 in
// either half of a byte) before the halves are parted, by vpand for the first pixel and a shift of 16 bits for the second:
// what the shift takes over from the neighbouring byte is a multiple of the neighbour's first sum, which is known in the
// end and subtracted. Nine instructions do 768, where looking up one pixel takes twelve; vpshufb is a third of them, so
// that its two ports are not what bounds it.
#include <immintrin.h>

#include <array>
#include <cstring>

#include "kernel.hpp"

namespace bnn {
namespace {

constexpr int kLanes = 32;
constexpr int kNibbles = 8;      // of a word
constexpr int kTriples = 21;     // of steps: at most 252 in a byte
constexpr int kColumn = 4;       // registers of channels beside each other: eight sums, three tables, a mask, two to work with
constexpr int kWidest = 65520 / 12 / kTriples * kTriples;  // triples of which 16 bits hold the sum

struct alignas(64) Tables {
    std::array<std::uint8_t, 16 * 256> bytes;
    Tables() {
        for (int pixels = 0; pixels < 256; ++pixels)
            for (int weight = 0; weight < 16; ++weight)
                bytes[pixels * 16 + weight] = static_cast<std::uint8_t>(
                    __builtin_popcount((pixels & 15) ^ weight) + 16 * __builtin_popcount((pixels >> 4) ^ weight));
    }
};

const Tables kTables;

bool usable() { return __builtin_cpu_supports("avx2"); }

// Steps are filled up to whole triples, with bits of 0 on both sides.
int triples_of(int words) { return (words * kNibbles + 2) / 3; }

std::size_t block_bytes(int words) { return static_cast<std::size_t>(triples_of(words)) * 3 * kLanes; }

std::size_t prepared_bytes(int channels, int words) {
    return static_cast<std::size_t>(rounded_up(channels, kLanes) / kLanes) * block_bytes(words);
}

// Of a word, the steps take the lower halves of its four bytes first, then the upper ones, as `arrange` finds them.
int shift_of(int step) { return step < 4 ? step * 8 : (step - 4) * 8 + 4; }

// [channels / 32][steps][32]: four bits of a channel in each byte. Channels i and i + 16 lie in bytes 2i and 2i + 1, so
// that widening to 16 bits, the lower bytes and then the upper ones, brings them into order.
void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    auto* to = static_cast<std::uint8_t*>(prepared);
    std::memset(to, 0, prepared_bytes(channels, words));
    for (int channel = 0; channel < channels; ++channel) {
        const int lane = channel % kLanes;
        std::uint8_t* block = to + channel / kLanes * block_bytes(words) + lane % 16 * 2 + lane / 16;
        for (int word = 0; word < words; ++word, block += kNibbles * kLanes)
            for (int step = 0; step < kNibbles; ++step)
                block[step * kLanes] =
                    weights[static_cast<std::size_t>(channel) * words + word] >> shift_of(step) & 15;
    }
}

std::size_t arranged_bytes(int pixels, int words) { return static_cast<std::size_t>(pixels + 1) / 2 * triples_of(words) * 3; }

// A byte of each step: four bits of the first pixel, and above them four of the second.
void pair_up(const std::uint32_t* one, const std::uint32_t* other, int words, std::uint8_t* to) {
    const __m128i low = _mm_set1_epi8(15), high = _mm_set1_epi8(static_cast<char>(0xf0));
    int word = 0;
    for (; word + 4 <= words; word += 4, to += 4 * kNibbles) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(one + word));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(other + word));
        const __m128i lower = _mm_or_si128(_mm_and_si128(a, low), _mm_and_si128(_mm_slli_epi16(b, 4), high));
        const __m128i upper = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a, 4), low), _mm_and_si128(b, high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi32(lower, upper));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), _mm_unpackhi_epi32(lower, upper));
    }
    for (; word < words; ++word, to += kNibbles) {
        const std::uint32_t a = one[word], b = other[word], mask = 0x0f0f0f0f;
        const std::uint32_t halves[2] = {(a & mask) | (b & mask) << 4, (a >> 4 & mask) | (b & ~mask)};
        std::memcpy(to, halves, sizeof(halves));
    }
    std::memset(to, 0, static_cast<std::size_t>(triples_of(words)) * 3 - static_cast<std::size_t>(words) * kNibbles);
}

// [pixels / 2][steps]; an odd pixel at the end is paired with itself.
void arrange(const std::uint32_t* rows, int pixels, int words, void* arranged) {
    auto* to = static_cast<std::uint8_t*>(arranged);
    for (int pixel = 0; pixel < pixels; pixel += 2, to += static_cast<std::size_t>(triples_of(words)) * 3) {
        const std::uint32_t* one = rows + static_cast<std::size_t>(pixel) * words;
        pair_up(one, pixel + 1 < pixels ? one + words : one, words, to);
    }
}

inline __m256i table_of(std::uint8_t pixels) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTables.bytes.data() + pixels * 16)));
}

// Three steps of one register of channels. Written out: gcc 12 moves sums from register to register, and spills some.
inline void look_up(const __m256i* weights, const __m256i tables[3], __m256i mask, __m256i& first, __m256i& second) {
    __m256i found, other;
    __asm__("vpshufb %[weight0], %[table0], %[found]\n\t"
            "vpshufb %[weight1], %[table1], %[other]\n\t"
            "vpaddb %[other], %[found], %[found]\n\t"
            "vpshufb %[weight2], %[table2], %[other]\n\t"
            "vpaddb %[other], %[found], %[found]\n\t"
            "vpand %[mask], %[found], %[other]\n\t"
            "vpsrlw $4, %[found], %[found]\n\t"
            "vpaddb %[other], %[first], %[first]\n\t"
            "vpaddw %[found], %[second], %[second]"
            : [first] "+x"(first), [second] "+x"(second), [found] "=&x"(found), [other] "=&x"(other)
            : [weight0] "m"(weights[0]), [weight1] "m"(weights[1]), [weight2] "m"(weights[2]), [table0] "x"(tables[0]),
              [table1] "x"(tables[1]), [table2] "x"(tables[2]), [mask] "x"(mask));
}

using Sums = std::uint16_t[kMostPixels + 1][kColumn * kLanes];

inline void widen(__m256i bytes, std::uint16_t* sums, bool starts) {
    const __m256i parts[2] = {_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16(bytes, 8)};
    for (int i = 0; i < 2; ++i) {
        auto* to = reinterpret_cast<__m256i*>(sums + i * 16);
        _mm256_store_si256(to, starts ? parts[i] : _mm256_add_epi16(parts[i], _mm256_load_si256(to)));
    }
}

// Two pixels, `Blocks` registers of channels, at most kTriples triples.
template <int Blocks>
void tile(
    const std::uint8_t* pair, const std::uint8_t* weights, std::size_t block, int triples, bool starts, std::uint16_t* one,
    std::uint16_t* other) {
    __m256i first[Blocks], second[Blocks];
    for (int b = 0; b < Blocks; ++b) first[b] = second[b] = _mm256_setzero_si256();
    const __m256i mask = _mm256_set1_epi8(15);
    for (int i = 0; i < triples; ++i, pair += 3, weights += 3 * kLanes) {
        const __m256i tables[3] = {table_of(pair[0]), table_of(pair[1]), table_of(pair[2])};
        for (int b = 0; b < Blocks; ++b)
            look_up(reinterpret_cast<const __m256i*>(weights + b * block), tables, mask, first[b], second[b]);
    }
    const __m256i upper = _mm256_set1_epi16(static_cast<short>(0xff00));
    for (int b = 0; b < Blocks; ++b) {
        const __m256i taken_over = _mm256_srli_epi16(_mm256_and_si256(first[b], upper), 4);
        widen(first[b], one + b * kLanes, starts);
        widen(_mm256_sub_epi16(second[b], taken_over), other + b * kLanes, starts);
    }
}

// dots = (starts ? total : dots) - 2 * sums
void collect(const Sums& sums, int pixels, int lanes, bool starts, std::int32_t total, std::int32_t* dots, int stride) {
    for (int pixel = 0; pixel < pixels; ++pixel, dots += stride)
        for (int i = 0; i < lanes; i += 8) {
            auto* to = reinterpret_cast<__m256i*>(dots + i);
            const __m256i sum = _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(sums[pixel] + i)));
            const __m256i before = starts ? _mm256_set1_epi32(total) : _mm256_loadu_si256(to);
            _mm256_storeu_si256(to, _mm256_sub_epi32(before, _mm256_slli_epi32(sum, 1)));
        }
}

// Parts of the sum are the outer loop: their weights stay in the nearest cache for all pixels.
template <int Blocks>
void column(
    const std::uint8_t* pairs, int pixels, int triples, const std::uint8_t* weights, std::int32_t total, std::int32_t* dots,
    int stride) {
    alignas(64) Sums sums;
    const std::size_t row = static_cast<std::size_t>(triples) * 3, block = row * kLanes;
    const auto least = [](int a, int b) { return a < b ? a : b; };
    for (int begin = 0; begin < triples; begin += kWidest) {
        const int end = least(triples, begin + kWidest), parts = (end - begin + kTriples - 1) / kTriples;
        const int size = (end - begin + parts - 1) / parts;
        for (int start = begin; start < end; start += size)
            for (int pixel = 0; pixel < pixels; pixel += 2)
                tile<Blocks>(
                    pairs + pixel / 2 * row + start * 3, weights + static_cast<std::size_t>(start) * 3 * kLanes, block,
                    least(size, end - start), start == begin, sums[pixel], sums[pixel + 1]);
        collect(sums, pixels, Blocks * kLanes, begin == 0, total, dots, stride);
    }
}

void multiply(
    const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t total, std::int32_t* dots,
    int stride) {
    const auto* pairs = static_cast<const std::uint8_t*>(rows);
    const auto* table = static_cast<const std::uint8_t*>(weights);
    const int triples = triples_of(words), blocks = rounded_up(channels, kLanes) / kLanes;
    const std::size_t block = block_bytes(words);
    int b = 0;
    for (; b + kColumn <= blocks; b += kColumn)
        column<kColumn>(pairs, pixels, triples, table + b * block, total, dots + b * kLanes, stride);
    for (; b + 2 <= blocks; b += 2) column<2>(pairs, pixels, triples, table + b * block, total, dots + b * kLanes, stride);
    if (b < blocks) column<1>(pairs, pixels, triples, table + b * block, total, dots + b * kLanes, stride);
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

const Kernel avx2_kernel{
    "avx2", usable, kLanes, prepared_bytes, prepare, arranged_bytes, arrange, multiply, finish_by_avx2, threshold_by_avx2};

}  // namespace bnn
