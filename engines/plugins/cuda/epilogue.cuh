// From the counts of a tile to what a layer answers: whole numbers, then floats, or bits by thresholds.
//
// A lane has of each 16 pixels x 8 filters: columns 2 t and 2 t + 1 of rows g and g + 8, where lane = 4 g + t.
#pragma once
#include "ptx.cuh"
#include "tile.cuh"

namespace epilogue {

using tile::Arguments;

__device__ __forceinline__ uint32_t stored(float value) {
    union {
        float value;
        uint32_t word;
    } bits{value};
    return bits.word;
}

// Where this lane's part of the tile lies.
template <typename Tile>
struct Place {
    int pixel = ptx::thread() / tile::WARP / Tile::warps_across * Tile::warp_pixels + ptx::thread() % tile::WARP / 4;
    int filter = ptx::thread() / tile::WARP % Tile::warps_across * Tile::warp_filters + ptx::thread() % 4 * 2;
};

// A lane's filters, and the sums of their weights.
struct Columns {
    const int32_t* first;
    int all_taps, left;  // entries of a filter's sums; filters of the group from the first one on

    __device__ __forceinline__ bool is_there(int column) const { return column < left; }
    __device__ __forceinline__ const int32_t* sums(int column) const { return first + column * all_taps; }
};

template <typename Tile>
__device__ __forceinline__ Columns columns_of(const Arguments& own) {
    const int column = ptx::block_y() * Tile::filters + Place<Tile>().filter;
    const int all_taps = (own.kernel_height + 1) * (own.kernel_width + 1);
    const int64_t filter = static_cast<int64_t>(ptx::block_z()) * own.group_filters + column;
    return {own.sums + filter * all_taps, all_taps, own.group_filters - column};
}

// The sum of a filter's weights over the taps of a rectangle, from sums over all that start at the first tap.
__device__ __forceinline__ int sum_inside(const Arguments& own, const int32_t* sums, uint32_t rectangle) {
    const int wide = own.kernel_width + 1;
    const int top = static_cast<int>(rectangle & 255) * wide, bottom = static_cast<int>(rectangle >> 8 & 255) * wide;
    const int left = static_cast<int>(rectangle >> 16 & 255), right = static_cast<int>(rectangle >> 24);
    return sums[bottom + right] - sums[bottom + left] - sums[top + right] + sums[top + left];
}

// Counts become dot products of K terms, in place. Where a set bit is -1, they are
//     XOR: s = K - 2 X
//     AND: s = K - 2 Sa - 2 Sw + 4 P, as X = Sa + Sw - 2 P;  2 Sw = K - T, with T the sum of the filter's weights
// and where it is 0, values are (s + 1) / 2, and the product is (s + T) / 2. K and T are both even or both odd.
template <typename Tile>
__device__ __forceinline__ void make_dots(
    const Arguments& own, int (&products)[Tile::row_blocks][Tile::column_blocks][4],
    const int (&set_bits)[Tile::row_blocks][4]) {
    const Columns columns = columns_of<Tile>(own);
    const int scale = (ptx::is_and ? 4 : -2) >> own.is_low_zero, set_scale = -2 >> own.is_low_zero;
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int total = columns.is_there(8 * j + c) ? columns.sums(8 * j + c)[columns.all_taps - 1] : 0;
            const int first = ptx::is_and ? total : own.is_low_zero ? (own.terms + total) / 2 : own.terms;
#pragma unroll
            for (int i = 0; i < 2 * Tile::row_blocks; ++i) {
                int& product = products[i / 2][j][i % 2 * 2 + c];
                product = first + scale * product;
                if constexpr (ptx::is_and) product += set_scale * set_bits[i / 2][i % 2 * 2];
            }
        }
}

// Taps outside were counted as +1; where they are 0, that is taken back.
template <typename Tile>
__device__ __forceinline__ void take_back_outside(
    const Arguments& own, int (&products)[Tile::row_blocks][Tile::column_blocks][4], uint32_t rectangles) {
    const Columns columns = columns_of<Tile>(own);
    const Place<Tile> place;
#pragma unroll
    for (int i = 0; i < 2 * Tile::row_blocks; ++i) {
        const uint32_t rectangle = ptx::load_shared(rectangles + (place.pixel + 8 * i) * 4);
        if (rectangle == tile::whole_window(own)) continue;
#pragma unroll
        for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                if (!columns.is_there(8 * j + c)) continue;
                const int32_t* sums = columns.sums(8 * j + c);
                products[i / 2][j][i % 2 * 2 + c] -= sums[columns.all_taps - 1] - sum_inside(own, sums, rectangle);
            }
    }
}

// The numbers of one filter: v = dot * multiplier + bias; then (v > shift ? v - shift : (v - shift) * slope) + offset.
struct Line {
    float multiplier, bias, shift, slope, offset;

    __device__ __forceinline__ float at(int dot) const {
        const float v = ptx::add(ptx::multiply(static_cast<float>(dot), multiplier), bias);
        const float above = ptx::subtract(v, shift);
        return ptx::add(v > shift ? above : ptx::multiply(above, slope), offset);
    }
};

__device__ __forceinline__ Line line_of(const Arguments& own, int filter) {
    const int column = own.activation_columns == 1 ? 0 : filter;
    const float* shift = own.activation + column;
    return {own.multiplier[filter], own.bias[filter], shift[0], shift[own.activation_columns],
            shift[2 * static_cast<int64_t>(own.activation_columns)]};
}

// Dot products become floats, in place.
template <typename Tile>
__device__ __forceinline__ void make_floats(
    const Arguments& own, int (&dots)[Tile::row_blocks][Tile::column_blocks][4]) {
    const int first = ptx::block_y() * Tile::filters + Place<Tile>().filter;
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int column = first + 8 * j + c;
            if (column >= own.group_filters) continue;
            const Line line = line_of(own, ptx::block_z() * own.group_filters + column);
#pragma unroll
            for (int i = 0; i < 2 * Tile::row_blocks; ++i) {
                int& dot = dots[i / 2][j][i % 2 * 2 + c];
                dot = static_cast<int>(stored(line.at(dot)));
            }
        }
}

// How floats of a tile lie in shared memory: rows of what lies side by side in the output, and 4 words between them.
template <typename Tile>
struct Sorted {
    bool is_by_pixel;  // one place: filters lie side by side; else pixels

    __device__ __forceinline__ int width() const { return is_by_pixel ? Tile::sorted_filters : Tile::pixels; }
    __device__ __forceinline__ uint32_t at(int row, int column) const { return (row * (width() + 4) + column) * 4; }
};

// Those of filters from `first` on in the tile, as many as are sorted at once; other warps have nothing to do.
template <typename Tile>
__device__ __forceinline__ void sort_floats(
    const Arguments& own, const int (&floats)[Tile::row_blocks][Tile::column_blocks][4], uint32_t to, int first) {
    const Place<Tile> place;
    const Sorted<Tile> sorted{own.places == 1};
    if (place.filter < first || place.filter >= first + Tile::sorted_filters) return;
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int i = 0; i < 2 * Tile::row_blocks; ++i) {
                const int pixel = place.pixel + 8 * i, filter = place.filter + 8 * j + c - first;
                const uint32_t at = sorted.is_by_pixel ? sorted.at(pixel, filter) : sorted.at(filter, pixel);
                ptx::store_shared(to + at, static_cast<uint32_t>(floats[i / 2][j][i % 2 * 2 + c]));
            }
}

__device__ __forceinline__ uint32_t half_of(uint32_t word) {
    union {
        uint32_t word;
        float value;
    } bits{word};
    return ptx::to_half(bits.value);
}

// So many values that lie side by side, here and in the output.
__device__ __forceinline__ void store_run(const Arguments& own, int64_t index, uint32_t from, int count) {
    if (own.out_type == tile::FP32) {
        uint32_t* to = static_cast<uint32_t*>(own.out) + index;
        if (count == 1)
            *to = ptx::load_shared(from);
        else
            ptx::store_global4(to, ptx::load_shared4(from));
        return;
    }
    uint16_t* to = static_cast<uint16_t*>(own.out) + index;
    if (count == 1) {
        *to = static_cast<uint16_t>(half_of(ptx::load_shared(from)));
        return;
    }
    const ptx::Words low = ptx::load_shared4(from), high = ptx::load_shared4(from + 16);
    ptx::store_global4(to, {{half_of(low.w[0]) | half_of(low.w[1]) << 16, half_of(low.w[2]) | half_of(low.w[3]) << 16,
                             half_of(high.w[0]) | half_of(high.w[1]) << 16,
                             half_of(high.w[2]) | half_of(high.w[3]) << 16}});
}

__device__ __forceinline__ constexpr int log_of(int power_of_two) {
    return power_of_two <= 1 ? 0 : 1 + log_of(power_of_two / 2);
}

// Sorted floats to the output, 16 bytes a thread where rows of the output start at multiples of that. All threads of a
// warp have the same column, or neighbours; what is divided are powers of two.
template <typename Tile>
__device__ __forceinline__ void store_floats(const Arguments& own, uint32_t from, int first_in_tile) {
    const Sorted<Tile> sorted{own.places == 1};
    const int log_wide = own.out_type == tile::FP32 ? 2 : 3;
    const int row_length = sorted.is_by_pixel ? own.group_filters : own.places;  // a whole row is of whole groups
    const int log_run = (row_length & ((1 << log_wide) - 1)) != 0 ? 0 : log_wide, run = 1 << log_run;
    const int log_runs = (sorted.is_by_pixel ? log_of(Tile::sorted_filters) : log_of(Tile::pixels)) - log_run;
    const int column = (ptx::thread() & ((1 << log_runs) - 1)) << log_run;
    const int first_row = ptx::thread() >> log_runs, rows = Tile::threads >> log_runs;
    const int64_t first_pixel = static_cast<int64_t>(ptx::block_x()) * Tile::pixels;
    const int first_filter = ptx::block_y() * Tile::filters + first_in_tile;
    const int64_t group = static_cast<int64_t>(ptx::block_z()) * own.group_filters;
    if (sorted.is_by_pixel) {
        if (first_filter + column >= own.group_filters) return;
        for (int row = first_row; row < Tile::pixels && first_pixel + row < own.pixels; row += rows)
            store_run(own, (first_pixel + row) * own.filters + group + first_filter + column,
                      from + sorted.at(row, column), run);
        return;
    }
    if (first_pixel + column >= own.pixels) return;
    const int pixel = static_cast<int>(first_pixel) + column, image = pixel / own.places;
    const int64_t first = (image * static_cast<int64_t>(own.filters) + group + first_filter) * own.places +
                          (pixel - image * own.places);
    for (int row = first_row; row < Tile::sorted_filters && first_filter + row < own.group_filters; row += rows)
        store_run(own, first + static_cast<int64_t>(row) * own.places, from + sorted.at(row, column), run);
}

// Bits of 32 filters of a pixel are spread over four lanes and four blocks of columns.
template <typename Tile>
__device__ __forceinline__ void store_bits(
    const Arguments& own, const int (&dots)[Tile::row_blocks][Tile::column_blocks][4]) {
    const Place<Tile> place;
    const int lane_column = ptx::thread() % 4 * 2, first_filter = ptx::block_y() * Tile::filters + place.filter - lane_column;
#pragma unroll
    for (int part = 0; part < Tile::column_blocks / 4; ++part) {
        const int first = first_filter + part * 32, left = own.group_filters - first;  // the same in all lanes
        const int filter = ptx::block_z() * own.group_filters + first;
        const uint32_t mask = left >= 32 ? ~0u : (1u << (left > 0 ? left : 0)) - 1;
        const uint32_t flips = left > 0 ? own.flips[filter / 32] : 0;
        uint32_t found[2 * Tile::row_blocks] = {};
#pragma unroll
        for (int bit = 0; bit < 8; ++bit) {
            const int j = part * 4 + bit / 2, c = bit % 2, column = bit / 2 * 8 + lane_column + c;
            const int threshold = column < left ? own.thresholds[filter + column] : 0;
#pragma unroll
            for (int i = 0; i < 2 * Tile::row_blocks; ++i)
                found[i] |= static_cast<uint32_t>(dots[i / 2][j][i % 2 * 2 + c] < threshold) << column;
        }
#pragma unroll
        for (int i = 0; i < 2 * Tile::row_blocks; ++i) {
            found[i] |= ptx::shuffle_xor(found[i], 1);
            found[i] |= ptx::shuffle_xor(found[i], 2);
            const int64_t pixel = static_cast<int64_t>(ptx::block_x()) * Tile::pixels + place.pixel + 8 * i;
            if (lane_column == i % 4 * 2 && pixel < own.pixels && left > 0)  // the four lanes take turns
                static_cast<uint32_t*>(own.out)[pixel * own.out_words + filter / 32] = (found[i] ^ flips) & mask;
        }
    }
}

template <typename Tile>
__device__ __forceinline__ void finish(
    const Arguments& own, int (&products)[Tile::row_blocks][Tile::column_blocks][4],
    const int (&set_bits)[Tile::row_blocks][4], uint32_t rectangles, uint32_t sorted) {
    make_dots<Tile>(own, products, set_bits);
    if (own.has_zero_pads) take_back_outside<Tile>(own, products, rectangles);
    if (own.out_type == tile::BITS) {
        store_bits<Tile>(own, products);
        return;
    }
    make_floats<Tile>(own, products);
#pragma unroll 1
    for (int first = 0; first < Tile::filters; first += Tile::sorted_filters) {
        if (first != 0) ptx::barrier();  // those before were stored
        sort_floats<Tile>(own, products, sorted, first);
        ptx::barrier();
        store_floats<Tile>(own, sorted, first);
    }
}

}  // namespace epilogue
