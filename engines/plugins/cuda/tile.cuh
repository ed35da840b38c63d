// What a convolution is given, the tile that a block computes of it, and what the block keeps of its pixels.
//
// A convolution is a product: rows are pixels of the output over all of the batch, columns the filters of one group,
// and the terms are the words of a window, tap by tap: `row_words` of them, a multiple of 8, those beyond the window 0.
#pragma once
#include "ptx.cuh"

namespace tile {

enum Out : int32_t { FP32, FP16, BITS };

struct Arguments {
    const uint32_t* bits;       // [rows, height, width, words]
    const uint32_t* weights;    // [filters, row_words], as layout.gpu_weights
    const int32_t* sums;        // [filters, kernel_height + 1, kernel_width + 1], as layout.gpu_sums
    const float* multiplier;    // [filters]
    const float* bias;          // [filters]
    const float* activation;    // [3, activation_columns]: shift, slope, offset
    const int32_t* thresholds;  // [filters]
    const uint32_t* flips;      // [out_words]
    void* out;                  // FP32 or FP16 [rows, filters, places], or bits [rows, places, out_words]
    int32_t height, width, words, group_words, filters, group_filters;
    int32_t kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width;
    int32_t pad_top, pad_left, out_width, places, pixels, out_words;
    int32_t row_words, terms, activation_columns;
    uint32_t by_group_words, by_kernel_width;  // what `divided` takes
    int32_t out_type, is_low_zero, has_zero_pads;
};

constexpr int WARP = 32;
constexpr int STAGE_WORDS = 16, STEP_WORDS = 8;  // words of a row in a stage, and in one mma
constexpr int STEPS = STAGE_WORDS / STEP_WORDS;
constexpr int ROW_BYTES = STAGE_WORDS * 4, PIECE_BYTES = 16, PIECE_WORDS = 4;
constexpr int PIECES = ROW_BYTES / PIECE_BYTES;
constexpr int LINE_BYTES = 128;  // of shared memory, that is all of its banks

// pixels x filters of a block, in warps_pixels x warps_filters parts, through so many stages
template <int pixels_, int filters_, int warps_pixels, int warps_filters, int stages_>
struct Tile {
    static constexpr int pixels = pixels_, filters = filters_, stages = stages_;
    static constexpr int warps_across = warps_filters, threads = warps_pixels * warps_filters * WARP;
    static constexpr int warp_pixels = pixels / warps_pixels, warp_filters = filters / warps_filters;
    static_assert(warp_pixels % 16 == 0 && warp_filters % 32 == 0, "a warp writes whole words of bits");
    static constexpr int row_blocks = warp_pixels / 16, column_blocks = warp_filters / 8;
    static constexpr int table_bytes = pixels * 4;
    static constexpr int stage_bytes = (pixels + filters) * ROW_BYTES;
    static constexpr int sorted_filters = filters < 64 || pixels < 64 ? filters : 64;  // of floats that are sorted at once
    static_assert(sorted_filters % warp_filters == 0, "a warp sorts all of its floats at once");
};

// Eight rows are read at once, 16 bytes of each: pieces change places by row, so that the eight lie in different banks.
__device__ __forceinline__ int swizzled(int row, int piece) { return piece ^ (row / (LINE_BYTES / ROW_BYTES) % PIECES); }

// Which row a lane gives to ldmatrix, for 16 pixels x 256 bits from row `first` of a stage: rows 0-7, rows 8-15, then
// both again, 128 bits further. So its four words are those of mma's first operand.
__device__ __forceinline__ uint32_t pixels_at(uint32_t stage, int first, int step) {
    const int lane = ptx::thread() % WARP, matrix = lane / 8, row = first + matrix % 2 * 8 + lane % 8;
    return stage + row * ROW_BYTES + swizzled(row, step * 2 + matrix / 2) * PIECE_BYTES;
}

// The same for 16 filters: both halves of the bits of rows 0-7, then of rows 8-15, two second operands.
__device__ __forceinline__ uint32_t filters_at(uint32_t stage, int first, int step) {
    const int lane = ptx::thread() % WARP, matrix = lane / 8, row = first + matrix / 2 * 8 + lane % 8;
    return stage + row * ROW_BYTES + swizzled(row, step * 2 + matrix % 2) * PIECE_BYTES;
}

// n / d, where `by` is 2**30 / d, rounded up; exact for n and d below 2**15.
__device__ __forceinline__ int divided(int n, uint32_t by) {
    return static_cast<int>(static_cast<uint64_t>(n) * by >> 30);
}

// Of `taps` taps that start at `first`, those inside: from the low byte to below the high one.
__device__ __forceinline__ uint32_t inside(int first, int taps, int dilation, int size) {
    const int from = first < 0 ? (-first + dilation - 1) / dilation : 0;
    const int to = first < size ? (size - first + dilation - 1) / dilation : 0;
    const int stop = to < taps ? to : taps, start = from < stop ? from : stop;
    return static_cast<uint32_t>(start | stop << 8);
}

// A rectangle of taps: rows as `inside` writes them in the low half, columns in the high one. This is the whole window.
__device__ __forceinline__ uint32_t whole_window(const Arguments& own) {
    return static_cast<uint32_t>(own.kernel_height << 8) | static_cast<uint32_t>(own.kernel_width << 8) << 16;
}

// A tap to look for in rectangles, whose numbers are below 128: the high bit of a byte stays where a subtraction does
// not pass 0.
constexpr uint32_t HIGH_BITS = 0x80808080u;
__device__ __forceinline__ uint32_t tap_at(int ky, int kx) { return HIGH_BITS + ky * 0x101u + kx * 0x1010000u; }
__device__ __forceinline__ bool is_inside(uint32_t tap, uint32_t rectangle) {
    return ((tap - rectangle) & HIGH_BITS) == 0x00800080u;  // from the first row and column, and before the last
}

// The image of a block's first pixel: what its pixels' windows are counted from.
__device__ __forceinline__ int64_t first_word(const Arguments& own, int64_t first_pixel) {
    const int row = static_cast<int>(first_pixel) / own.places;
    return static_cast<int64_t>(row) * own.height * own.width * own.words;
}

// At `starts`, of each pixel, the word of its window's first tap, counted from first_word, modulo 2**32: it may lie
// outside, and is right again for taps inside. At `rectangles`, its taps inside; none, where there is no such pixel.
template <typename Tile>
__device__ __forceinline__ void keep_windows(
    const Arguments& own, int64_t first_pixel, uint32_t starts, uint32_t rectangles) {
    static_assert(Tile::pixels <= Tile::threads, "a thread has one pixel");
    const int i = ptx::thread();
    if (i >= Tile::pixels) return;
    uint32_t start = 0, taps = 0;
    if (first_pixel + i < own.pixels) {
        const int pixel = static_cast<int>(first_pixel) + i, row = pixel / own.places, place = pixel - row * own.places;
        const int out_y = place / own.out_width, out_x = place - out_y * own.out_width;
        const int y = out_y * own.stride_height - own.pad_top, x = out_x * own.stride_width - own.pad_left;
        const uint32_t line = static_cast<uint32_t>(row - static_cast<int>(first_pixel) / own.places) * own.height + y;
        start = (line * own.width + x) * own.words;
        taps = inside(y, own.kernel_height, own.dilation_height, own.height) |
               inside(x, own.kernel_width, own.dilation_width, own.width) << 16;
    }
    ptx::store_shared(starts + i * 4, start);
    ptx::store_shared(rectangles + i * 4, taps);
}

}  // namespace tile
