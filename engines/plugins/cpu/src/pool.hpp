// The largest value of each channel in a window of bits: -1, a set bit, where all are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnn {

struct Window {
    int kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width;
    int pad_top, pad_left, pad_bottom, pad_right;

    int out_height(int height) const;
    int out_width(int width) const;
};

// bits: [height][width][words], out: [out height][out width][words]; pads count as nothing.
void max_pool(
    const Window& window, const std::uint32_t* bits, int height, int width, std::size_t words, std::uint32_t* out);

}  // namespace bnn
