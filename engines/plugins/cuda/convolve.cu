// Convolutions and products of bits, on tensor cores: tiles come through shared memory in stages, mma counts the bits of
// XOR or AND, and what is left to do to whole numbers is in epilogue.cuh.
//
// Three copies of each tile, for words of a group that are a multiple of 4, of 2, or of 1: so wide are its loads.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "tile.cuh"

namespace {

using tile::Arguments, tile::Tile;

// Where a block's tables and stages lie in shared memory, and its images in the global one.
template <typename Tile>
struct Block {
    int64_t first_pixel = static_cast<int64_t>(ptx::block_x()) * Tile::pixels;
    uint32_t starts = ptx::shared_base(), rectangles = starts + Tile::table_bytes;
    uint32_t stages = rectangles + Tile::table_bytes;
};

// The words of one stage of the windows. A thread has the same words of several pixels, so it looks for their tap once.
template <typename Tile, int words>
__device__ __forceinline__ void load_windows(
    const Arguments& own, const Block<Tile>& block, const uint32_t* images, uint32_t to, int first_word) {
    constexpr int parts = tile::STAGE_WORDS / words, rows = Tile::threads / parts;
    const int part = ptx::thread() % parts * words, first_row = ptx::thread() / parts;
    const int word = first_word + part, index = tile::divided(word, own.by_group_words);
    const int ky = tile::divided(index, own.by_kernel_width), kx = index - ky * own.kernel_width;
    const uint32_t tap = tile::tap_at(ky, kx);  // of words behind the window, below all rows of it
    const uint32_t line = static_cast<uint32_t>(ky * own.dilation_height) * own.width;
    const uint32_t further = (line + kx * own.dilation_width) * own.words + word - index * own.group_words;
#pragma unroll 4
    for (int i = 0; i < (Tile::pixels + rows - 1) / rows; ++i) {
        const int row = first_row + i * rows;
        if (Tile::pixels % rows != 0 && row >= Tile::pixels) break;
        const bool is_there = tile::is_inside(tap, ptx::load_shared(block.rectangles + row * 4));
        const uint32_t start = ptx::load_shared(block.starts + row * 4);
        const int piece = tile::swizzled(row, part / tile::PIECE_WORDS);
        ptx::copy_async<words * 4>(
            to + row * tile::ROW_BYTES + piece * tile::PIECE_BYTES + part % tile::PIECE_WORDS * 4,
            images + (is_there ? start + further : 0), is_there);
    }
}

template <typename Tile>
__device__ __forceinline__ void load_filters(const Arguments& own, uint32_t to, int first_word) {
    constexpr int rows = Tile::threads / tile::PIECES;
    static_assert(Tile::filters % rows == 0, "all threads load filters");
    const int part = ptx::thread() % tile::PIECES, word = first_word + part * tile::PIECE_WORDS;
    const int first_filter = ptx::block_y() * Tile::filters;
#pragma unroll
    for (int i = 0; i < Tile::filters / rows; ++i) {
        const int row = ptx::thread() / tile::PIECES + i * rows;
        const bool is_there = first_filter + row < own.group_filters && word < own.row_words;
        const int64_t filter = static_cast<int64_t>(ptx::block_z()) * own.group_filters + first_filter + row;
        ptx::copy_async<16>(to + row * tile::ROW_BYTES + tile::swizzled(row, part) * tile::PIECE_BYTES,
                            own.weights + (is_there ? filter * own.row_words + word : 0), is_there);
    }
}

// A warp's part of the product, and on AND the set bits of its pixels' rows.
template <typename Tile>
struct Sums {
    int products[Tile::row_blocks][Tile::column_blocks][4];
    int set_bits[Tile::row_blocks][4];
};

// One mma of each 16 pixels x 8 filters of the warp. Columns of ones count what is set in the rows.
template <typename Tile>
__device__ __forceinline__ void multiply_step(Sums<Tile>& sums, uint32_t stage, int step) {
    const int warp = ptx::thread() / tile::WARP;
    const int first_pixel = warp / Tile::warps_across * Tile::warp_pixels;
    const int first_filter = Tile::pixels + warp % Tile::warps_across * Tile::warp_filters;
    uint32_t b[Tile::column_blocks / 2][4];
#pragma unroll
    for (int j = 0; j < Tile::column_blocks / 2; ++j)
        ptx::load_matrices(b[j], tile::filters_at(stage, first_filter + 16 * j, step));
#pragma unroll
    for (int i = 0; i < Tile::row_blocks; ++i) {
        uint32_t a[4];
        ptx::load_matrices(a, tile::pixels_at(stage, first_pixel + 16 * i, step));
#pragma unroll
        for (int j = 0; j < Tile::column_blocks; ++j)
            ptx::mma(sums.products[i][j], a, {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
        if constexpr (ptx::is_and) ptx::mma(sums.set_bits[i], a, {~0u, ~0u});
    }
}

template <typename Tile, int words>
__device__ __forceinline__ void convolve(const Arguments& own) {
    const Block<Tile> block;
    tile::keep_windows<Tile>(own, block.first_pixel, block.starts, block.rectangles);
    ptx::barrier();
    const uint32_t* images = own.bits + tile::first_word(own, block.first_pixel) + ptx::block_z() * own.group_words;
    const auto load = [&](int stage, int number) {
        const uint32_t to = block.stages + stage * Tile::stage_bytes;
        load_windows<Tile, words>(own, block, images, to, number * tile::STAGE_WORDS);
        load_filters<Tile>(own, to + Tile::pixels * tile::ROW_BYTES, number * tile::STAGE_WORDS);
    };
    const int count = (own.row_words + tile::STAGE_WORDS - 1) / tile::STAGE_WORDS;
#pragma unroll 1
    for (int number = 0; number < Tile::stages - 1; ++number) {
        if (number < count) load(number, number);
        ptx::commit();
    }
    Sums<Tile> sums{};
    int read = 0, write = Tile::stages - 1;
#pragma unroll 1
    for (int number = 0; number < count; ++number) {
        ptx::wait_groups<Tile::stages - 2>();  // this stage is there, and by the barrier all threads' parts of it
        ptx::barrier();                        // and all are done with the one before, which is written next
        if (number + Tile::stages - 1 < count) load(write, number + Tile::stages - 1);
        ptx::commit();
#pragma unroll
        for (int step = 0; step < tile::STEPS; ++step)
            if (number * tile::STEPS + step < own.row_words / tile::STEP_WORDS)
                multiply_step<Tile>(sums, block.stages + read * Tile::stage_bytes, step);
        read = read + 1 == Tile::stages ? 0 : read + 1;
        write = write + 1 == Tile::stages ? 0 : write + 1;
    }
    ptx::wait_groups<0>();
    ptx::barrier();  // the stages are free: the epilogue sorts floats there
    epilogue::finish<Tile>(own, sums.products, sums.set_bits, block.rectangles, block.stages);
}

}  // namespace

// `blocks` bounds the registers of a thread, so that tactics.BLOCKS holds.
#define ENTRY(name, words, blocks, ...)                                                        \
    extern "C" __global__ void __launch_bounds__(Tile<__VA_ARGS__>::threads, blocks)           \
        convolve_##name##_##words(const Arguments own) {                                       \
        convolve<Tile<__VA_ARGS__>, words>(own);                                               \
    }
#define ENTRIES(name, blocks, ...)       \
    ENTRY(name, 4, blocks, __VA_ARGS__) \
    ENTRY(name, 2, blocks, __VA_ARGS__) \
    ENTRY(name, 1, blocks, __VA_ARGS__)

ENTRIES(128x128, 2, 128, 128, 2, 4, 2)
ENTRIES(128x64, 4, 128, 64, 2, 2, 3)
ENTRIES(64x64, 5, 64, 64, 2, 2, 3)
ENTRIES(64x32, 7, 64, 32, 4, 1, 3)
ENTRIES(32x64, 7, 32, 64, 2, 2, 3)
ENTRIES(16x128, 6, 16, 128, 1, 4, 3)
