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

// Registers of channels that are counted beside each other, where `left` are still to be counted.
int column_of(int left) { return left >= kColumn ? kColumn : left >= 2 ? 2 : 1; }

// [columns][triples][blocks of the column][3][32], as they are read: four bits of a channel in each byte. Channels i and
// i + 16 of a block lie in bytes 2i and 2i + 1, so that widening to 16 bits, the lower bytes and then the upper ones,
// brings them into order.
void prepare(const std::uint32_t* weights, int channels, int words, void* prepared) {
    auto* to = static_cast<std::uint8_t*>(prepared);
    std::memset(to, 0, prepared_bytes(channels, words));
    const int blocks = rounded_up(channels, kLanes) / kLanes;
    for (int first = 0, width; first < blocks; first += width, to += width * block_bytes(words)) {
        width = column_of(blocks - first);
        for (int channel = first * kLanes; channel < channels && channel < (first + width) * kLanes; ++channel) {
            const int block = channel / kLanes - first, lane = channel % kLanes;
            for (int step = 0; step < words * kNibbles; ++step) {
                const std::uint32_t word = weights[static_cast<std::size_t>(channel) * words + step / kNibbles];
                const std::size_t place = static_cast<std::size_t>(step / 3 * width + block) * 3 + step % 3;
                to[place * kLanes + lane % 16 * 2 + lane / 16] = word >> shift_of(step % kNibbles) & 15;
            }
        }
    }
}

std::size_t arranged_bytes(int pixels, int words) { return static_cast<std::size_t>(pixels + 1) / 2 * triples_of(words) * 3; }

// A byte of each step: four bits of the first pixel, and above them four of the second.
void pair_up(const std::uint32_t* one, const std::uint32_t* other, int words, std::uint8_t* to) {
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(static_cast<char>(0xf0));
    int word = 0;
    for (; word + 8 <= words; word += 8, to += 8 * kNibbles) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + word));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other + word));
        const __m256i lower = _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16(b, 4), high));
        const __m256i upper = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), low), _mm256_and_si256(b, high));
        const __m256i pairs[2] = {_mm256_unpacklo_epi32(lower, upper), _mm256_unpackhi_epi32(lower, upper)};
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(pairs[0], pairs[1], 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), _mm256_permute2x128_si256(pairs[0], pairs[1], 0x31));
    }
    for (; word < words; ++word, to += kNibbles) {
        const std::uint32_t a = one[word], b = other[word], mask = 0x0f0f0f0f;
        const std::uint32_t halves[2] = {(a & mask) | (b & mask) << 4, (a >> 4 & mask) | (b & ~mask)};
        std::memcpy(to, halves, sizeof(halves));
    }
    const int left = triples_of(words) * 3 - words * kNibbles;  // two at most: no call of memset
    if (left > 0) to[0] = 0;
    if (left > 1) to[1] = 0;
}

// [pixels / 2][steps]; an odd pixel at the end is paired with itself.
void arrange(const std::uint32_t* rows, int pixels, int words, void* arranged) {
    auto* to = static_cast<std::uint8_t*>(arranged);
    for (int pixel = 0; pixel < pixels; pixel += 2, to += static_cast<std::size_t>(triples_of(words)) * 3) {
        const std::uint32_t* one = rows + static_cast<std::size_t>(pixel) * words;
        pair_up(one, pixel + 1 < pixels ? one + words : one, words, to);
    }
}

inline __m256i table_of(std::size_t pixels) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTables.bytes.data() + pixels * 16)));
}

// Three steps of one register of channels. Written out: gcc 12 moves sums from register to register, and spills some.
inline void look_up(const __m256i* weights, const __m256i tables[3], __m256i mask, __m256i& first, __m256i& second) {
    __m256i found, other, third;
    __asm__("vpshufb %[weight0], %[table0], %[found]\n\t"
            "vpshufb %[weight1], %[table1], %[other]\n\t"
            "vpshufb %[weight2], %[table2], %[third]\n\t"
            "vpaddb %[other], %[found], %[found]\n\t"
            "vpaddb %[third], %[found], %[found]\n\t"
            "vpand %[mask], %[found], %[other]\n\t"
            "vpsrlw $4, %[found], %[found]\n\t"
            "vpaddb %[other], %[first], %[first]\n\t"
            "vpaddw %[found], %[second], %[second]"
            : [first] "+x"(first), [second] "+x"(second), [found] "=&x"(found), [other] "=&x"(other), [third] "=&x"(third)
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
    const std::uint8_t* pair, const std::uint8_t* weights, int triples, bool starts, std::uint16_t* one,
    std::uint16_t* other) {
    __m256i first[Blocks], second[Blocks];
    for (int b = 0; b < Blocks; ++b) first[b] = second[b] = _mm256_setzero_si256();
    const __m256i mask = _mm256_set1_epi8(15);
    for (int i = 0; i < triples; ++i, pair += 3, weights += 3 * kLanes * Blocks) {
        const __m256i tables[3] = {table_of(pair[0]), table_of(pair[1]), table_of(pair[2])};
        for (int b = 0; b < Blocks; ++b)
            look_up(reinterpret_cast<const __m256i*>(weights + b * 3 * kLanes), tables, mask, first[b], second[b]);
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

// The lines of `part` of `parts` of so many bytes.
inline void fetch(const std::uint8_t* from, std::size_t bytes, int part, int parts) {
    const std::size_t share = (bytes / 64 + parts) / parts * 64;
    for (std::size_t i = 0; i < share; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from + part * share + i), _MM_HINT_T0);
}

// Parts of the sum are the outer loop: their weights stay in the nearest cache for all pixels, each of which fetches some
// of the next ones.
template <int Blocks>
void column(
    const std::uint8_t* pairs, int pixels, int triples, const std::uint8_t* weights, std::int32_t total, std::int32_t* dots,
    int stride) {
    alignas(64) Sums sums;
    constexpr std::size_t kTriple = 3 * kLanes * Blocks;
    const auto least = [](int a, int b) { return a < b ? a : b; };
    for (int begin = 0; begin < triples; begin += kWidest) {
        const int end = least(triples, begin + kWidest), parts = (end - begin + kTriples - 1) / kTriples;
        const int size = (end - begin + parts - 1) / parts;
        for (int start = begin; start < end; start += size) {
            const std::uint8_t* part = weights + start * kTriple;
            for (int pixel = 0; pixel < pixels; pixel += 2) {
                fetch(part + size * kTriple, size * kTriple, pixel / 2, (pixels + 1) / 2);
                tile<Blocks>(
                    pairs + static_cast<std::size_t>(pixel / 2 * triples + start) * 3, part, least(size, end - start),
                    start == begin, sums[pixel], sums[pixel + 1]);
            }
        }
        collect(sums, pixels, Blocks * kLanes, begin == 0, total, dots, stride);
    }
}

void multiply(
    const void* rows, int pixels, int words, const void* weights, int channels, std::int32_t total, std::int32_t* dots,
    int stride) {
    const auto* pairs = static_cast<const std::uint8_t*>(rows);
    const auto* from = static_cast<const std::uint8_t*>(weights);
    const int triples = triples_of(words), blocks = rounded_up(channels, kLanes) / kLanes;
    for (int first = 0, width; first < blocks; first += width, from += width * block_bytes(words), dots += width * kLanes) {
        width = column_of(blocks - first);
        const auto run = [&](auto column_of_width) { column_of_width(pairs, pixels, triples, from, total, dots, stride); };
        if (width == kColumn)
            run(column<kColumn>);
        else if (width == 2)
            run(column<2>);
        else
            run(column<1>);
    }
}

// Eight pixels of eight channels, turned.
template <bool Adds>
void turn(
    const std::int32_t* dots, int stride, const float* multiplier, const float* bias, const float* added, float* out,
    std::size_t places) {
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
    const auto store = [&](std::size_t place, __m256 values) {
        if constexpr (Adds) {
            // as in packing: the next pixels of each channel are fetched by no processor on its own
            _mm_prefetch(reinterpret_cast<const char*>(added + place + kMostPixels), _MM_HINT_T0);
            values = _mm256_add_ps(values, _mm256_loadu_ps(added + place));
        }
        _mm256_storeu_ps(out + place, values);
    };
    for (int i = 0; i < 4; ++i) {
        store(i * places, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
        store((i + 4) * places, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
}

constexpr std::size_t kPlaces = 32;  // of one channel, that are compared into a register of bytes

// Bytes of -1 where a value is not above (or not at least) the threshold; four of them at a time are out of order, as
// `in_order` knows.
template <bool Strict>
__m256i below(const float* values, __m256 threshold) {
    const auto eight = [&](int i) {
        const __m256 found = _mm256_loadu_ps(values + i * 8);
        return _mm256_castps_si256(_mm256_cmp_ps(found, threshold, Strict ? _CMP_NGT_UQ : _CMP_NGE_UQ));
    };
    return _mm256_packs_epi16(_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
}

__m256i in_order(__m256i bytes) { return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }

// The words of 32 places out of their four bytes, each of which is in a register of its own.
void interleave(const __m256i bytes[4], std::uint32_t words[kPlaces]) {
    const __m256i one = in_order(bytes[0]), two = in_order(bytes[1]), three = in_order(bytes[2]), four = in_order(bytes[3]);
    const __m256i lower[2] = {_mm256_unpacklo_epi8(one, two), _mm256_unpackhi_epi8(one, two)};
    const __m256i upper[2] = {_mm256_unpacklo_epi8(three, four), _mm256_unpackhi_epi8(three, four)};
    for (int i = 0; i < 2; ++i) {
        const __m256i parts[2] = {_mm256_unpacklo_epi16(lower[i], upper[i]), _mm256_unpackhi_epi16(lower[i], upper[i])};
        for (int j = 0; j < 2; ++j) {
            auto* to = reinterpret_cast<__m128i*>(words + i * 8 + j * 4);
            _mm_storeu_si128(to, _mm256_castsi256_si128(parts[j]));
            _mm_storeu_si128(to + 4, _mm256_extracti128_si256(parts[j], 1));
        }
    }
}

template <bool Strict>
void pack_places(const float* values, const float* thresholds, int channels, std::size_t places, std::uint32_t* bits) {
    const int words = words_of(channels);
    for (int word = 0; word < words; ++word) {
        __m256i bytes[4];
        for (auto& one : bytes) one = _mm256_setzero_si256();
        for (int channel = word * 32; channel < channels && channel < word * 32 + 32; ++channel, values += places) {
            const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << channel % 8));
            // channels lie far apart: the next places of each are fetched by no processor on its own
            _mm_prefetch(reinterpret_cast<const char*>(values + kPlaces), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(values + kPlaces + 16), _MM_HINT_T0);
            const __m256i found = below<Strict>(values, _mm256_broadcast_ss(thresholds + channel));
            bytes[channel % 32 / 8] = _mm256_or_si256(bytes[channel % 32 / 8], _mm256_and_si256(found, bit));
        }
        std::uint32_t found[kPlaces];
        interleave(bytes, found);
        for (std::size_t i = 0; i < kPlaces; ++i) bits[i * words + word] = found[i];
    }
}

}  // namespace

// The last places, where they are fewer than 32, are packed together with some before them, once more.
void pack_by_avx2(
    const float* values, const float* thresholds, bool strict, int channels, std::size_t places, std::size_t first,
    std::size_t last, std::uint32_t* bits) {
    if (last - first < kPlaces) return pack_plainly(values, thresholds, strict, channels, places, first, last, bits);
    for (std::size_t place = first; place < last; place += kPlaces) {
        const std::size_t begin = place + kPlaces <= last ? place : last - kPlaces;
        std::uint32_t* to = bits + begin * words_of(channels);
        if (strict)
            pack_places<true>(values + begin, thresholds, channels, places, to);
        else
            pack_places<false>(values + begin, thresholds, channels, places, to);
    }
}

void finish_by_avx2(
    const std::int32_t* dots, int pixels, int stride, int channels, const float* multiplier, const float* bias,
    const float* added, float* out, std::size_t places) {
    const int whole_pixels = pixels / 8 * 8, whole_channels = channels / 8 * 8;
    const auto from = [&](std::size_t place) { return added != nullptr ? added + place : nullptr; };
    const auto turn_one = added != nullptr ? turn<true> : turn<false>;
    for (int channel = 0; channel < whole_channels; channel += 8)
        for (int pixel = 0; pixel < whole_pixels; pixel += 8) {
            const std::size_t place = channel * places + pixel;
            turn_one(
                dots + static_cast<std::size_t>(pixel) * stride + channel, stride, multiplier + channel, bias + channel,
                from(place), out + place, places);
        }
    finish_plainly(
        dots + static_cast<std::size_t>(whole_pixels) * stride, pixels - whole_pixels, stride, whole_channels, multiplier, bias,
        from(whole_pixels), out + whole_pixels, places);
    const std::size_t rest = whole_channels * places;
    finish_plainly(
        dots + whole_channels, pixels, stride, channels - whole_channels, multiplier + whole_channels, bias + whole_channels,
        from(rest), out + rest, places);
}

void threshold_by_avx2(
    const std::int32_t* dots, int pixels, int stride, int channels, const std::int32_t* thresholds,
    const std::uint32_t* flips, std::uint32_t* words, std::size_t step) {
    const int whole = channels / 32 * 32;
    for (int pixel = 0; pixel < pixels; ++pixel)
        for (int first = 0; first < whole; first += 32) {
            const std::int32_t* from = dots + static_cast<std::size_t>(pixel) * stride + first;
            const auto below = [&](int i) {
                const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thresholds + first + i * 8));
                return _mm256_cmpgt_epi32(limit, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * 8)));
            };
            const __m256i lower = _mm256_packs_epi32(below(0), below(1)), upper = _mm256_packs_epi32(below(2), below(3));
            const auto word = static_cast<std::uint32_t>(_mm256_movemask_epi8(in_order(_mm256_packs_epi16(lower, upper))));
            words[pixel * step + first / 32] = word ^ flips[first / 32];
        }
    if (whole < channels)
        threshold_plainly(
            dots + whole, pixels, stride, channels - whole, thresholds + whole, flips + whole / 32, words + whole / 32, step);
}

const Kernel avx2_kernel{
    "avx2", usable, kLanes, prepared_bytes, prepare, arranged_bytes, arrange, multiply, finish_by_avx2, threshold_by_avx2,
    pack_by_avx2};

}  // namespace bnn
