// What becomes of counts beside the kernels: activations, and floats with the channels last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convolution.hpp"

namespace bnn {

// Whether it changes nothing at all.
bool is_plain(const Activation& activation);

// In place, of channels [first, first + channels) of the activation. values: [channel * places + pixel]
void activate(
    const Activation& activation, std::size_t first, std::size_t pixels, int channels, float* values, std::size_t places);

// The same, values: [pixel * step + channel]
void activate_rows(
    const Activation& activation, std::size_t first, std::size_t pixels, int channels, float* values, std::size_t step);

// out[row * step + column] += values[row * step + column]
void add(const float* values, std::size_t rows, std::size_t columns, float* out, std::size_t step);

// out[pixel * step + channel] = dots[pixel * stride + channel] * multiplier[channel] + bias[channel], each rounded
void finish_rows(
    const std::int32_t* dots, std::size_t pixels, int stride, int channels, const float* multiplier, const float* bias,
    float* out, std::size_t step);

}  // namespace bnn
