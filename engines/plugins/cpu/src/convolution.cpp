#include "convolution.hpp"

#include <algorithm>
#include <cstring>

#include "epilogue.hpp"

namespace bnn {
namespace {

int reach(int size, int dilation) { return (size - 1) * dilation + 1; }

// An output pixel, and where its window begins in the input.
struct Place {
    Place(const Geometry& g, std::size_t index)
        : geometry(g), row(static_cast<int>(index / g.out_width())), column(static_cast<int>(index % g.out_width())),
          columns(g.out_width()) {}

    void next() {
        if (++column < columns) return;
        column = 0;
        ++row;
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

// A few words: a call of memcpy would take longer.
std::uint32_t* copy(const std::uint32_t* from, std::size_t words, std::uint32_t* to) {
    std::size_t i = 0;
    for (; i + 4 <= words; i += 4) std::memcpy(to + i, from + i, 16);
    if (i + 2 <= words) {
        std::memcpy(to + i, from + i, 8);
        i += 2;
    }
    if (i < words) to[i] = from[i];
    return to + words;
}

// What an output pixel reads, tap after tap; 0 where the input ends.
void gather(const Place& place, const std::uint32_t* image, int group, std::uint32_t* to) {
    const Geometry& g = place.geometry;
    const std::size_t own = g.group_words(), whole = own * g.groups;
    const int top = place.top(), left = place.left();
    if (g.groups == 1 && g.dilation_width == 1 && place.is_inside()) {  // the taps of a row lie side by side
        for (int ky = 0; ky < g.kernel_height; ++ky) {
            const std::size_t first = static_cast<std::size_t>(top + ky * g.dilation_height) * g.width + left;
            to = copy(image + first * own, own * g.kernel_width, to);
        }
        return;
    }
    for (int ky = 0; ky < g.kernel_height; ++ky) {
        const int y = top + ky * g.dilation_height;
        for (int kx = 0; kx < g.kernel_width; ++kx) {
            const int x = left + kx * g.dilation_width;
            if (y < 0 || y >= g.height || x < 0 || x >= g.width)
                to = std::fill_n(to, own, 0u);
            else
                to = copy(image + (static_cast<std::size_t>(y) * g.width + x) * whole + group * own, own, to);
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
    bytes_.resize(bytes + 64);
    start_ = bytes_.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes_.data()) % 64) % 64;
}

struct Convolution::Scratch {
    std::vector<std::uint32_t> rows;
    Buffer arranged;
    std::vector<std::int32_t> dots;
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
    const auto finish = [&](std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots) {
        const std::size_t channel = static_cast<std::size_t>(group) * filters_;
        const float* multiplier = floats.multiplier + channel;
        const float* bias = floats.bias + channel;
        if (floats.channels_last) {
            float* out = floats.out + (image * places + begin) * g.filters + channel;
            finish_rows(dots, count, stride_, filters_, multiplier, bias, out, g.filters);
            activate_rows(floats.activation, channel, count, filters_, out, g.filters);
            return;
        }
        float* out = floats.out + (image * g.filters + channel) * places + begin;
        kernel_.finish(dots, static_cast<int>(count), stride_, filters_, multiplier, bias, out, places);
        activate(floats.activation, channel, count, filters_, out, places);
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
    Place place(g, begin);
    for (int i = 0; i < number; ++i, place.next())
        gather(place, image, group, scratch.rows.data() + static_cast<std::size_t>(i) * words);
    const void* rows = scratch.rows.data();
    if (kernel_.arrange != nullptr) {
        kernel_.arrange(scratch.rows.data(), number, words, scratch.arranged.data());
        rows = scratch.arranged.data();
    }
    std::int32_t* dots = scratch.dots.data();
    kernel_.multiply(rows, number, words, weights_[group].data(), filters_, total, dots, stride_);
    if (g.low_is_zero) halve(group, count, dots);
    if (!g.pads_with_one) correct(g, begin, count, group, dots);
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
    const Geometry& g, std::size_t begin, std::size_t count, int group, std::int32_t* dots) const {
    const int taps = g.kernel_height * g.kernel_width;
    Place place(g, begin);
    for (std::size_t i = 0; i < count; ++i, place.next(), dots += stride_) {
        if (place.is_inside()) continue;
        for (int tap = 0; tap < taps; ++tap) {
            const int y = place.top() + tap / g.kernel_width * g.dilation_height;
            const int x = place.left() + tap % g.kernel_width * g.dilation_width;
            if (y >= 0 && y < g.height && x >= 0 && x < g.width) continue;
            const std::int32_t* sums = tap_sums_.data() + (static_cast<std::size_t>(group) * taps + tap) * filters_;
            for (int filter = 0; filter < filters_; ++filter) dots[filter] -= sums[filter];
        }
    }
}

}  // namespace bnn
