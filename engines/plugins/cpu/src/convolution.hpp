// A binary convolution: rows of bits out of the input, counts by a kernel, floats by multiplier and bias.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernel.hpp"

namespace bnn {

// All of one image; a matrix product is that of one row of pixels and a kernel of 1 x 1. Channels are true counts; those of a group fill
// whole words where there are several groups.
struct Geometry {
    int channels, height, width, filters, groups;
    int kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width;
    int pad_top, pad_left, pad_bottom, pad_right;
    bool pads_with_one;  // else with 0, which counts for nothing
    bool low_is_zero;    // a set bit of the input is 0, else -1

    int out_height() const;
    int out_width() const;
    int group_words() const;  // of one place
    int row_words() const;    // of one output pixel and group
};

// Memory aligned to 64 bytes, which is not cleared.
class Buffer {
  public:
    void resize(std::size_t bytes);  // what was in it is lost
    std::uint8_t* data() const { return start_; }

  private:
    std::unique_ptr<std::uint8_t[]> bytes_;
    std::uint8_t* start_ = nullptr;
};

// Calls `work(begin, end)` for parts of [0, count) that fill it, perhaps side by side.
using Parallel = std::function<void(std::size_t count, const std::function<void(std::size_t, std::size_t)>& work)>;

// v > shift ? (v - shift) + offset : (v - shift) * slope + offset. rows: [shift, slope, offset][channels or 1]
struct Activation {
    const float* rows;
    int columns;
};

// out: [batch][filters][out height][out width] of v = dot * multiplier + bias, activated; with `channels_last`, [batch]
// [out height][out width][filters]; `added` lies as `out` does, and is added last
struct Floats {
    const float* multiplier;
    const float* bias;
    Activation activation;
    float* out;
    bool channels_last;
    const float* added = nullptr;
};

// out: [batch][out height][out width][words]; a bit is set where (dot < threshold) != flip. Filters are in one group, or
// those of each fill whole words. flips: [words]
struct Bits {
    const std::int32_t* thresholds;
    const std::uint32_t* flips;
    std::uint32_t* out;
};

struct Place;

class Convolution {
  public:
    // weights: [filters][kernel height][kernel width][words of a group's channels]. Height and width do not count here.
    Convolution(const Geometry& geometry, const std::uint32_t* weights, const Kernel& kernel);

    // bits: [batch][height][width][words]; `g` is that of the weights, with this height and width
    void run(
        const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Floats& floats, const Parallel& parallel) const;
    void run(
        const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Bits& bits_out, const Parallel& parallel) const;

    const Kernel& kernel() const { return kernel_; }

  private:
    struct Scratch;
    using Finish = std::function<void(
        std::size_t image, std::size_t begin, std::size_t count, int group, const std::int32_t* dots)>;
    void dots(
        const Geometry& g, const std::uint32_t* bits, std::size_t batch, const Finish& finish, const Parallel& parallel) const;
    // Of `count` output pixels and one group.
    void pixels(
        const Geometry& g, const std::uint32_t* image, std::size_t begin, std::size_t count, int group,
        Scratch& scratch) const;
    void correct(const Geometry& g, std::size_t begin, std::size_t count, int group, Scratch& scratch) const;
    const std::int32_t* outside(const Place& place, int group, Scratch& scratch) const;
    void halve(int group, std::size_t count, std::int32_t* dots) const;

    const Kernel& kernel_;
    int filters_;                           // of a group
    int stride_;                            // of counts, in channels
    std::vector<Buffer> weights_;           // of each group
    std::vector<std::int32_t> tap_sums_;    // [groups][taps][filters of a group]: what a tap of +1 alone adds
    std::vector<std::int32_t> weight_sums_; // [groups][filters of a group]
};

}  // namespace bnn
