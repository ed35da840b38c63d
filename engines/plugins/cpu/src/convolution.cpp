#include "convolution.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "epilogue.hpp"

namespace bnn {
namespace {

int reach(int size, int dilation) { return (size - 1) * dilation + 1; }

// Taps [first, last) along one side.
struct Taps {
    int first, last;
    bool has(int tap) const { return first <= tap && tap < last; }
};

// Those of a window from `start` on that lie in [0, size).
Taps inside(int start, int size, int taps, int dilation) {
    const int first = start < 0 ? (dilation - 1 - start) / dilation : 0;
    const int last = size > start ? (size - 1 - start) / dilation + 1 : 0;
    return {std::min(first, taps), std::min(last, taps)};
}

}  // namespace

// An output pixel, and where its window begins in the input.
struct Place {
    Place(const Geometry& g, std::size_t index)
        : geometry(g), row(static_cast<int>(index / g.out_width())), column(static_cast<int>(index % g.out_width())),
          columns(g.out_width()) {}

    void next(int count = 1) {  // in its row
        column += count;
        if (column < columns) return;
        column = 0;
        ++row;
    }
    // Places of this row, this one the first, that lie inside, if this one does.
    int inside_run() const {
        const Geometry& g = geometry;
        const int last = (g.width + g.pad_left - reach(g.kernel_width, g.dilation_width)) / g.stride_width;
        return std::min(last, columns - 1) - column + 1;
    }
    int top() const { return row * geometry.stride_height - geometry.pad_top; }
    int left() const { return column * geometry.stride_width - geometry.pad_left; }
    bool is_inside() const {
        const Geometry& g = geometry;
        return top() >= 0 && left() >= 0 && top() + reach(g.kernel_height, g.dilation_height) <= g.height &&
               left() + reach(g.kernel_width, g.dilation_width) <= g.width;
    }

    const Geometry& geometry;
    int row, column, columns;
};

namespace {

// `count` pieces of `words` words, where they are `step` words apart, to where they are `row` apart: few words, for which
// calls of memcpy would take longer. `Words` is their number where the compiler knows it, else 0.
template <int Words>
void copy(const std::uint32_t* from, std::size_t step, std::size_t words, int count, std::uint32_t* to, std::size_t row) {
    const std::size_t size = Words != 0 ? Words : words;
    for (int i = 0; i < count; ++i, from += step, to += row) {
        std::size_t word = 0;
        for (; word + 4 <= size; word += 4) std::memcpy(to + word, from + word, 16);
        if (word + 2 <= size) {
            std::memcpy(to + word, from + word, 8);
            word += 2;
        }
        if (word < size) to[word] = from[word];
    }
}

// `count` neighbours of one row of the output that lie inside: the taps of a row lie side by side.
void gather_inside(const Place& place, int count, const std::uint32_t* image, std::uint32_t* to) {
    const Geometry& g = place.geometry;
    const std::size_t own = g.group_words(), piece = own * g.kernel_width, row = g.row_words();
    for (int ky = 0; ky < g.kernel_height; ++ky, to += piece) {
        const int y = place.top() + ky * g.dilation_height;
        const std::uint32_t* from = image + (static_cast<std::size_t>(y) * g.width + place.left()) * own;
        const auto run = [&](auto copying) { copying(from, own * g.stride_width, piece, count, to, row); };
        switch (piece) {
            case 3: run(copy<3>); break;
            case 6: run(copy<6>); break;
            case 12: run(copy<12>); break;
            case 24: run(copy<24>); break;
            default: run(copy<0>);
        }
    }
}

// What an output pixel reads, tap after tap; 0 where the input ends.
void gather(const Place& place, const std::uint32_t* image, int group, std::uint32_t* to) {
    const Geometry& g = place.geometry;
    const std::size_t own = g.group_words(), whole = own * g.groups;
    const int top = place.top(), left = place.left();
    for (int ky = 0; ky < g.kernel_height; ++ky) {
        const int y = top + ky * g.dilation_height;
        for (int kx = 0; kx < g.kernel_width; ++kx, to += own) {
            const int x = left + kx * g.dilation_width;
            if (y < 0 || y >= g.height || x < 0 || x >= g.width)
                std::fill_n(to, own, 0u);
            else
                copy<0>(image + (static_cast<std::size_t>(y) * g.width + x) * whole + group * own, 0, own, 1, to, 0);
        }
    }
}

}  // namespace

int Geometry::out_height() const {
    return (height + pad_top + pad_bottom - reach(kernel_height, dilation_height)) / stride_height + 1;
}

int Geometry::out_width() const {
    return (width + pad_left + pad_right - reach(kernel_width, dilation_width)) / stride_width + 1;
}

int Geometry::group_words() const { return (channels / groups + 31) / 32; }

int Geometry::row_words() const { return kernel_height * kernel_width * group_words(); }

void Buffer::resize(std::size_t bytes) {
    bytes_.reset(new std::uint8_t[bytes + 64]);
    start_ = bytes_.get() + (64 - reinterpret_cast<std::uintptr_t>(bytes_.get()) % 64) % 64;
}

struct Convolution::Scratch {
    std::vector<std::uint32_t> rows;
    Buffer arranged;
    std::vector<std::int32_t> dots;
    std::vector<std::map<std::array<int, 4>, std::vector<std::int32_t>>> outside;  // by group, and by the taps inside
};

Convolution::Convolution(const Geometry& geometry, const std::uint32_t* weights, const Kernel& kernel)
    : kernel_(kernel), filters_(geometry.filters / geometry.groups), stride_(rounded_up(filters_, kernel.lanes)) {
    const int words = geometry.row_words(), depth = geometry.group_words();
    const int taps = geometry.kernel_height * geometry.kernel_width;
    weights_.resize(geometry.groups);
    weight_sums_.resize(geometry.filters);
    for (int group = 0; group < geometry.groups; ++group) {
        const std::uint32_t* own = weights + static_cast<std::size_t>(group) * filters_ * words;
        weights_[group].resize(kernel.prepared_bytes(filters_, words));
        kernel.prepare(own, filters_, words, weights_[group].data());
        for (int tap = 0; tap < taps; ++tap)
            for (int filter = 0; filter < filters_; ++filter) {
                int negative = 0;
                for (int word = 0; word < depth; ++word)
                    negative += __builtin_popcount(own[(static_cast<std::size_t>(filter) * taps + tap) * depth + word]);
                tap_sums_.push_back(geometry.channels / geometry.groups - 2 * negative);
                weight_sums_[static_cast<std::size_t>(group) * filters_ + filter] += tap_sums_.back();
            }
    }
}

void Convolution::dots(
    const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Finish& finish, const Parallel& parallel) const {
    const std::size_t places = static_cast<std::size_t>(g.out_height()) * g.out_width();
    constexpr std::size_t kPixels = kMostPixels;
    const std::size_t parts = (places + kPixels - 1) / kPixels;
    const std::size_t words = static_cast<std::size_t>(g.height) * g.width * g.group_words() * g.groups;
    parallel(batch * parts, [&](std::size_t begin, std::size_t end) {
        Scratch scratch;
        scratch.rows.resize(kPixels * g.row_words());
        if (kernel_.arrange != nullptr) scratch.arranged.resize(kernel_.arranged_bytes(kMostPixels, g.row_words()));
        scratch.dots.resize(kPixels * stride_);
        scratch.outside.resize(g.groups);
        for (std::size_t part = begin; part < end; ++part) {
            const std::size_t image = part / parts, first = part % parts * kPixels, count = std::min(kPixels, places - first);
            for (int group = 0; group < g.groups; ++group) {
                pixels(g, bits + image * words, first, count, group, scratch);
                finish(image, first, count, group, scratch.dots.data());
            }
        }
    });
}

void Convolution::run(
    const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Floats& floats, const Parallel& parallel) const {
    const std::size_t places = static_cast<std::size_t>(g.out_height()) * g.out_width();
    const bool plain = is_plain(floats.activation);
    const auto finish = [&](std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots) {
        const std::size_t channel = static_cast<std::size_t>(group) * filters_;
        const float* multiplier = floats.multiplier + channel;
        const float* bias = floats.bias + channel;
        if (floats.channels_last) {
            float* out = floats.out + (image * places + begin) * g.filters + channel;
            finish_rows(dots, count, stride_, filters_, multiplier, bias, out, g.filters);
            if (!plain) activate_rows(floats.activation, channel, count, filters_, out, g.filters);
            if (floats.added != nullptr) add(floats.added + (out - floats.out), count, filters_, out, g.filters);
            return;
        }
        const std::size_t first = (image * g.filters + channel) * places + begin;
        const float* added = floats.added != nullptr ? floats.added + first : nullptr;
        float* out = floats.out + first;
        kernel_.finish(dots, static_cast<int>(count), stride_, filters_, multiplier, bias, plain ? added : nullptr, out, places);
        if (plain) return;
        activate(floats.activation, channel, count, filters_, out, places);
        if (added != nullptr) add(added, filters_, count, out, places);
    };
    dots(g, bits, batch, finish, parallel);
}

void Convolution::run(
    const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Bits& bits_out, const Parallel& parallel) const {
    const std::size_t places = static_cast<std::size_t>(g.out_height()) * g.out_width();
    const std::size_t words = (g.filters + 31) / 32;
    const auto finish = [&](std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots) {
        const std::size_t channel = static_cast<std::size_t>(group) * filters_;
        kernel_.threshold(
            dots, static_cast<int>(count), stride_, filters_, bits_out.thresholds + channel, bits_out.flips + channel / 32,
            bits_out.out + (image * places + begin) * words + channel / 32, words);
    };
    dots(g, bits, batch, finish, parallel);
}

void Convolution::pixels(
    const Geometry& g, const std::uint32_t* image, std::size_t begin, std::size_t count, int group, Scratch& scratch) const {
    const int words = g.row_words(), number = static_cast<int>(count);
    const std::int32_t total = g.channels / g.groups * g.kernel_height * g.kernel_width;
    const bool is_simple = g.groups == 1 && g.dilation_width == 1;
    Place place(g, begin);
    for (int i = 0; i < number;) {
        std::uint32_t* to = scratch.rows.data() + static_cast<std::size_t>(i) * words;
        const int run = is_simple && place.is_inside() ? std::min(place.inside_run(), number - i) : 1;
        if (is_simple && place.is_inside())
            gather_inside(place, run, image, to);
        else
            gather(place, image, group, to);
        place.next(run);
        i += run;
    }
    const void* rows = scratch.rows.data();
    if (kernel_.arrange != nullptr) {
        kernel_.arrange(scratch.rows.data(), number, words, scratch.arranged.data());
        rows = scratch.arranged.data();
    }
    std::int32_t* dots = scratch.dots.data();
    kernel_.multiply(rows, number, words, weights_[group].data(), filters_, total, dots, stride_);
    if (g.low_is_zero) halve(group, count, dots);
    if (!g.pads_with_one) correct(g, begin, count, group, scratch);
}

// x in {0, 1} is (s + 1) / 2 of signs s, so that x . w = (s . w + sum of w) / 2. Both have the parity of their length.
void Convolution::halve(int group, std::size_t count, std::int32_t* dots) const {
    const std::int32_t* sums = weight_sums_.data() + static_cast<std::size_t>(group) * filters_;
    for (std::size_t i = 0; i < count; ++i, dots += stride_)
        for (int filter = 0; filter < filters_; ++filter) dots[filter] = (dots[filter] + sums[filter]) / 2;
}

// Bits of 0 stand where the input ends, and were counted as +1: what they added is taken back. A +1 adds the same
// whether the low value is -1 or 0.
void Convolution::correct(
    const Geometry& g, std::size_t begin, std::size_t count, int group, Scratch& scratch) const {
    const int number = static_cast<int>(count);
    Place place(g, begin);
    for (int i = 0, run; i < number; i += run, place.next(run)) {
        run = place.is_inside() ? std::min(place.inside_run(), number - i) : 1;
        if (place.is_inside()) continue;
        std::int32_t* dots = scratch.dots.data() + static_cast<std::size_t>(i) * stride_;
        const std::int32_t* sums = outside(place, group, scratch);
        for (int filter = 0; filter < filters_; ++filter) dots[filter] -= sums[filter];
    }
}

// What the taps outside add. Places on a border that have the same ones share it: there are eight kinds for 3x3.
const std::int32_t* Convolution::outside(const Place& place, int group, Scratch& scratch) const {
    const Geometry& g = place.geometry;
    const Taps rows = inside(place.top(), g.height, g.kernel_height, g.dilation_height);
    const Taps columns = inside(place.left(), g.width, g.kernel_width, g.dilation_width);
    std::vector<std::int32_t>& found = scratch.outside[group][{rows.first, rows.last, columns.first, columns.last}];
    if (!found.empty()) return found.data();
    found.resize(filters_);
    const std::int32_t* sums =
        tap_sums_.data() + static_cast<std::size_t>(group) * g.kernel_height * g.kernel_width * filters_;
    for (int ky = 0; ky < g.kernel_height; ++ky)
        for (int kx = 0; kx < g.kernel_width; ++kx, sums += filters_) {
            if (rows.has(ky) && columns.has(kx)) continue;
            for (int filter = 0; filter < filters_; ++filter) found[filter] += sums[filter];
        }
    return found.data();
}

}  // namespace bnn
