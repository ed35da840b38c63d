#include "epilogue.hpp"

namespace bnn {
namespace {

struct Bend {
    float shift, slope, offset;
    float operator()(float v) const {
        const float moved = v - shift;
        return (v > shift ? moved : moved * slope) + offset;
    }
    bool changes_nothing() const { return shift == 0 && slope == 1 && offset == 0; }
};

Bend bend_of(const Activation& activation, std::size_t channel) {
    const std::size_t columns = activation.columns, column = columns == 1 ? 0 : channel;
    const float* rows = activation.rows;
    return {rows[column], rows[columns + column], rows[2 * columns + column]};
}

}  // namespace

bool is_plain(const Activation& activation) {
    for (int column = 0; column < activation.columns; ++column)
        if (!bend_of(activation, column).changes_nothing()) return false;
    return true;
}

void activate(
    const Activation& activation, std::size_t first, std::size_t pixels, int channels, float* values, std::size_t places) {
    for (int channel = 0; channel < channels; ++channel, values += places) {
        const Bend bend = bend_of(activation, first + channel);
        if (bend.changes_nothing()) continue;
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) values[pixel] = bend(values[pixel]);
    }
}

void activate_rows(
    const Activation& activation, std::size_t first, std::size_t pixels, int channels, float* values, std::size_t step) {
    for (int channel = 0; channel < channels; ++channel) {
        const Bend bend = bend_of(activation, first + channel);
        if (bend.changes_nothing()) continue;
        for (std::size_t pixel = 0; pixel < pixels; ++pixel)
            values[pixel * step + channel] = bend(values[pixel * step + channel]);
    }
}

void add(const float* values, std::size_t rows, std::size_t columns, float* out, std::size_t step) {
    for (std::size_t row = 0; row < rows; ++row, values += step, out += step)
        for (std::size_t column = 0; column < columns; ++column) out[column] += values[column];
}

void finish_rows(
    const std::int32_t* dots, std::size_t pixels, int stride, int channels, const float* multiplier, const float* bias,
    float* out, std::size_t step) {
    for (std::size_t pixel = 0; pixel < pixels; ++pixel, dots += stride, out += step)
        for (int channel = 0; channel < channels; ++channel)
            out[channel] = static_cast<float>(dots[channel]) * multiplier[channel] + bias[channel];
}

}  // namespace bnn
