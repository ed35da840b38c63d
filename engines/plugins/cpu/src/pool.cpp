#include "pool.hpp"

namespace bnn {
namespace {

int windows(int size, int before, int after, int kernel, int dilation, int stride) {
    return (size + before + after - (kernel - 1) * dilation - 1) / stride + 1;
}

}  // namespace

int Window::out_height(int height) const {
    return windows(height, pad_top, pad_bottom, kernel_height, dilation_height, stride_height);
}

int Window::out_width(int width) const {
    return windows(width, pad_left, pad_right, kernel_width, dilation_width, stride_width);
}

void max_pool(
    const Window& window, const std::uint32_t* bits, int height, int width, std::size_t words, std::uint32_t* out) {
    const int out_height = window.out_height(height), out_width = window.out_width(width);
    for (int row = 0; row < out_height; ++row)
        for (int column = 0; column < out_width; ++column, out += words) {
            for (std::size_t word = 0; word < words; ++word) out[word] = ~0u;
            for (int ky = 0; ky < window.kernel_height; ++ky) {
                const int y = row * window.stride_height - window.pad_top + ky * window.dilation_height;
                if (y < 0 || y >= height) continue;
                for (int kx = 0; kx < window.kernel_width; ++kx) {
                    const int x = column * window.stride_width - window.pad_left + kx * window.dilation_width;
                    if (x < 0 || x >= width) continue;
                    const std::uint32_t* from = bits + (static_cast<std::size_t>(y) * width + x) * words;
                    for (std::size_t word = 0; word < words; ++word) out[word] &= from[word];
                }
            }
        }
}

}  // namespace bnn
