// Signs of floats into bits: x [rows, channels, places], thresholds FP32 [channels] -> bits [rows, places, words].
//
// A set bit is -1, where x does not reach the threshold of its channel (NaN does not). Bits beyond the channels are 0.
#include "ptx.cuh"

namespace {

constexpr int THREADS = 128, WARP = 32;
constexpr int QUARTERS = 4;                      // threads that share a word, 8 channels each
constexpr int UNITS = THREADS / QUARTERS;        // runs of places in a block
constexpr int WORDS_A_WARP = 8;                  // where there is one place

struct Arguments {
    const void* x;
    const float* thresholds;
    uint32_t* bits;
    int32_t rows, row_step, channels, places, words, strict;
};

template <bool is_half>
__device__ __forceinline__ float value_of(uint32_t stored) {
    if constexpr (is_half) return ptx::from_half(static_cast<uint16_t>(stored));
    union {
        uint32_t word;
        float value;
    } bits{stored};
    return bits.value;
}

__device__ __forceinline__ bool is_negative(float value, float threshold, bool strict) {
    return strict ? !(value > threshold) : !(value >= threshold);
}

// So many places of one channel, each in a word of its own.
template <bool is_half, int bytes, int count>
__device__ __forceinline__ void read_places(uint32_t (&found)[count], const char* from) {
    if constexpr (bytes == 2) {
        found[0] = *reinterpret_cast<const uint16_t*>(from);
        return;
    }
    uint32_t words[(bytes + 3) / 4];
    if constexpr (bytes == 16) {
        const ptx::Words four = ptx::load_global4(from);
        for (int i = 0; i < 4; ++i) words[i] = four.w[i];
    } else if constexpr (bytes == 8) {
        const uint64_t two = *reinterpret_cast<const uint64_t*>(from);
        words[0] = static_cast<uint32_t>(two), words[1] = static_cast<uint32_t>(two >> 32);
    } else {
        words[0] = *reinterpret_cast<const uint32_t*>(from);
    }
    for (int i = 0; i < count; ++i) found[i] = is_half ? (words[i / 2] >> (i % 2 * 16)) & 0xffff : words[i];
}

// Four lanes read 8 channels each of the same places, and put their parts of the words together.
template <bool is_half, int bytes>
__device__ __forceinline__ void pack_places(const Arguments& own) {
    constexpr int size = is_half ? 2 : 4, count = bytes / size, depth = WARP / QUARTERS;
    const int lane = ptx::thread() % WARP, quarter = lane / depth;
    const int unit = ptx::block_x() * UNITS + ptx::thread() / WARP * depth + lane % depth;
    const bool is_there = unit < own.places / count;  // all lanes go on: they shuffle
    const int word = ptx::block_y(), first = word * WARP + quarter * depth;
    for (int row = ptx::block_z(); row < own.rows; row += own.row_step) {
        uint32_t packed[count] = {};
#pragma unroll
        for (int i = 0; i < depth; ++i) {
            const int channel = first + i;
            if (!is_there || channel >= own.channels) continue;
            const int64_t index = (static_cast<int64_t>(row) * own.channels + channel) * own.places + unit * count;
            uint32_t stored[count];
            read_places<is_half, bytes>(stored, static_cast<const char*>(own.x) + index * size);
            const float threshold = own.thresholds[channel];
#pragma unroll
            for (int k = 0; k < count; ++k)
                packed[k] |= static_cast<uint32_t>(is_negative(value_of<is_half>(stored[k]), threshold, own.strict))
                             << (quarter * depth + i);
        }
#pragma unroll
        for (int k = 0; k < count; ++k) {
            packed[k] |= ptx::shuffle_xor(packed[k], depth);
            packed[k] |= ptx::shuffle_xor(packed[k], 2 * depth);
            const int64_t pixel = static_cast<int64_t>(row) * own.places + unit * count + k;
            if (is_there && k % QUARTERS == quarter) own.bits[pixel * own.words + word] = packed[k];
        }
    }
}

// One place: the channels lie side by side, and each lane has one of them.
template <bool is_half>
__device__ __forceinline__ void pack_rows(const Arguments& own) {
    const int lane = ptx::thread() % WARP, row = ptx::block_x();
    const int first = (ptx::block_y() * (THREADS / WARP) + ptx::thread() / WARP) * WORDS_A_WARP;
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < WORDS_A_WARP; ++i) {
        const int channel = (first + i) * WARP + lane;
        bool negative = false;
        if (channel < own.channels) {
            const int64_t index = static_cast<int64_t>(row) * own.channels + channel;
            const uint32_t stored =
                is_half ? static_cast<const uint16_t*>(own.x)[index] : static_cast<const uint32_t*>(own.x)[index];
            negative = is_negative(value_of<is_half>(stored), own.thresholds[channel], own.strict);
        }
        const uint32_t word = ptx::ballot(negative);
        if (lane == i) kept = word;
    }
    if (lane < WORDS_A_WARP && first + lane < own.words)
        own.bits[static_cast<int64_t>(row) * own.words + first + lane] = kept;
}

}  // namespace

#define ENTRY(name, work) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const Arguments arguments) { work(arguments); }

ENTRY(pack_fp32_16, (pack_places<false, 16>))
ENTRY(pack_fp32_8, (pack_places<false, 8>))
ENTRY(pack_fp32_4, (pack_places<false, 4>))
ENTRY(pack_fp16_16, (pack_places<true, 16>))
ENTRY(pack_fp16_8, (pack_places<true, 8>))
ENTRY(pack_fp16_2, (pack_places<true, 2>))
ENTRY(pack_rows_fp32, pack_rows<false>)
ENTRY(pack_rows_fp16, pack_rows<true>)
