#include "convolution.hpp"

#include <algorithm>
#include <cstring>

namespace bnn {
namespace {

constexpr std::size_t kPixels = 32;  // at a time: their counts stay in the nearest cache

int reach(int size, int dilation) { return (size - 1) * dilation + 1; }

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
    Buffer rows;
    std::vector<std::int32_t> dots;
};

Convolution::Convolution(const Geometry& geometry, const std::uint32_t* weights, const Kernel& kernel)
    : geometry_(geometry), kernel_(kernel) {
    const int filters = geometry.filters / geometry.groups, words = geometry.row_words();
    const int taps = geometry.kernel_height * geometry.kernel_width, depth = geometry.group_words();
    stride_ = rounded_up(filters, kernel.lanes);
    weights_.resize(geometry.groups);
    for (int group = 0; group < geometry.groups; ++group) {
        const std::uint32_t* own = weights + static_cast<std::size_t>(group) * filters * words;
        weights_[group].resize(kernel.prepared_bytes(filters, words));
        kernel.prepare(own, filters, words, weights_[group].data());
        if (geometry.pads_with_one) continue;
        for (int tap = 0; tap < taps; ++tap)
            for (int filter = 0; filter < filters; ++filter) {
                int negative = 0;
                for (int word = 0; word < depth; ++word)
                    negative += __builtin_popcount(own[(static_cast<std::size_t>(filter) * taps + tap) * depth + word]);
                tap_sums_.push_back(geometry.channels / geometry.groups - 2 * negative);
            }
    }
}

void Convolution::dots(
    const std::uint32_t* bits, std::size_t batch, const Finish& finish, const Parallel& parallel) const {
    const Geometry& g = geometry_;
    const std::size_t places = static_cast<std::size_t>(g.out_height()) * g.out_width();
    const std::size_t parts = (places + kPixels - 1) / kPixels;
    const std::size_t words = static_cast<std::size_t>(g.height) * g.width * g.group_words() * g.groups;
    const auto* images = reinterpret_cast<const std::uint8_t*>(bits);
    Buffer expanded;
    if (kernel_.word_bytes != 4) {
        expanded.resize(batch * words * kernel_.word_bytes);
        images = expanded.data();
        parallel(batch * words, [&](std::size_t begin, std::size_t end) {
            kernel_.expand(bits + begin, end - begin, expanded.data() + begin * kernel_.word_bytes);
        });
    }
    parallel(batch * parts, [&](std::size_t begin, std::size_t end) {
        Scratch scratch;
        scratch.rows.resize(kPixels * g.row_words() * kernel_.word_bytes);
        scratch.dots.resize(kPixels * stride_);
        for (std::size_t part = begin; part < end; ++part) {
            const std::size_t image = part / parts, first = part % parts * kPixels, count = std::min(kPixels, places - first);
            for (int group = 0; group < g.groups; ++group) {
                pixels(images + image * words * kernel_.word_bytes, first, count, group, scratch);
                finish(image, first, count, group, scratch.dots.data());
            }
        }
    });
}

void Convolution::run(
    const std::uint32_t* bits, std::size_t batch, const Floats& floats, const Parallel& parallel) const {
    const std::size_t places = static_cast<std::size_t>(geometry_.out_height()) * geometry_.out_width();
    const int filters = geometry_.filters / geometry_.groups;
    const auto finish = [&](std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots) {
        const std::size_t channel = static_cast<std::size_t>(group) * filters;
        kernel_.finish(
            dots, static_cast<int>(count), stride_, filters, floats.multiplier + channel, floats.bias + channel,
            floats.out + (image * geometry_.filters + channel) * places + begin, places);
    };
    dots(bits, batch, finish, parallel);
}

void Convolution::run(
    const std::uint32_t* bits, std::size_t batch, const Bits& bits_out, const Parallel& parallel) const {
    const std::size_t places = static_cast<std::size_t>(geometry_.out_height()) * geometry_.out_width();
    const int filters = geometry_.filters / geometry_.groups;
    const std::size_t words = (geometry_.filters + 31) / 32;
    const auto finish = [&](std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots) {
        const std::size_t channel = static_cast<std::size_t>(group) * filters;
        kernel_.threshold(
            dots, static_cast<int>(count), stride_, filters, bits_out.thresholds + channel, bits_out.flips + channel / 32,
            bits_out.out + (image * places + begin) * words + channel / 32, words);
    };
    dots(bits, batch, finish, parallel);
}

void Convolution::gather(const std::uint8_t* image, std::size_t place, int group, std::uint8_t* to) const {
    const Geometry& g = geometry_;
    const std::size_t own = g.group_words() * kernel_.word_bytes, whole = own * g.groups;
    const int top = static_cast<int>(place / g.out_width()) * g.stride_height - g.pad_top;
    const int left = static_cast<int>(place % g.out_width()) * g.stride_width - g.pad_left;
    if (g.groups == 1 && g.dilation_width == 1 && is_inside(place)) {  // the taps of a row lie side by side
        const std::size_t row = own * g.kernel_width;
        for (int ky = 0; ky < g.kernel_height; ++ky, to += row)
            std::memcpy(to, image + (static_cast<std::size_t>(top + ky * g.dilation_height) * g.width + left) * own, row);
        return;
    }
    for (int ky = 0; ky < g.kernel_height; ++ky) {
        const int y = top + ky * g.dilation_height;
        for (int kx = 0; kx < g.kernel_width; ++kx, to += own) {
            const int x = left + kx * g.dilation_width;
            if (y < 0 || y >= g.height || x < 0 || x >= g.width)
                std::memset(to, 0, own);
            else
                std::memcpy(to, image + (static_cast<std::size_t>(y) * g.width + x) * whole + group * own, own);
        }
    }
}

bool Convolution::is_inside(std::size_t place) const {
    const Geometry& g = geometry_;
    const int top = static_cast<int>(place / g.out_width()) * g.stride_height - g.pad_top;
    const int left = static_cast<int>(place % g.out_width()) * g.stride_width - g.pad_left;
    return top >= 0 && left >= 0 && top + reach(g.kernel_height, g.dilation_height) <= g.height &&
           left + reach(g.kernel_width, g.dilation_width) <= g.width;
}

void Convolution::pixels(
    const std::uint8_t* image, std::size_t begin, std::size_t count, int group, Scratch& scratch) const {
    const Geometry& g = geometry_;
    const int filters = g.filters / g.groups, words = g.row_words();
    const std::int32_t total = g.channels / g.groups * g.kernel_height * g.kernel_width;
    for (std::size_t i = 0; i < count; ++i)
        gather(image, begin + i, group, scratch.rows.data() + i * words * kernel_.word_bytes);
    kernel_.multiply(
        scratch.rows.data(), static_cast<int>(count), words, weights_[group].data(), filters, total, scratch.dots.data(),
        stride_);
    if (g.pads_with_one) return;
    for (std::size_t i = 0; i < count; ++i)
        if (!is_inside(begin + i)) correct(begin + i, group, scratch.dots.data() + i * stride_);
}

// Bits of 0 stand where the input ends, and were counted as +1: what they added is taken back.
void Convolution::correct(std::size_t pixel, int group, std::int32_t* dots) const {
    const Geometry& g = geometry_;
    const int filters = g.filters / g.groups, taps = g.kernel_height * g.kernel_width;
    const int top = static_cast<int>(pixel / g.out_width()) * g.stride_height - g.pad_top;
    const int left = static_cast<int>(pixel % g.out_width()) * g.stride_width - g.pad_left;
    for (int tap = 0; tap < taps; ++tap) {
        const int y = top + tap / g.kernel_width * g.dilation_height, x = left + tap % g.kernel_width * g.dilation_width;
        if (y >= 0 && y < g.height && x >= 0 && x < g.width) continue;
        const std::int32_t* sums = tap_sums_.data() + (static_cast<std::size_t>(group) * taps + tap) * filters;
        for (int filter = 0; filter < filters; ++filter) dots[filter] -= sums[filter];
    }
}

}  // namespace bnn
