#include "openvino_bits.hpp"

#include <algorithm>

#include "dispatch.hpp"

namespace bnn {

ov::PartialShape packed_shape(const ov::PartialShape& given) {
    if (given.rank().is_dynamic()) return ov::PartialShape::dynamic();
    OPENVINO_ASSERT(given.rank().get_length() >= 2, "packing needs rows and channels");
    std::vector<ov::Dimension> sizes{given[0]};
    sizes.insert(sizes.end(), given.begin() + 2, given.end());
    sizes.push_back(given[1].is_static() ? ov::Dimension(words_of(number(given[1].get_length()))) : ov::Dimension());
    return sizes;
}

ov::Shape packed_shape(const ov::Shape& given) {
    ov::Shape sizes{given[0]};
    sizes.insert(sizes.end(), given.begin() + 2, given.end());
    sizes.push_back(words_of(static_cast<int>(given[1])));
    return sizes;
}

void pack(const ov::Tensor& floats, const ov::Tensor& limits, bool strict, std::uint32_t* bits) {
    const ov::Shape shape = floats.get_shape();
    OPENVINO_ASSERT(limits.get_size() == shape[1], "packing with another threshold count than channels");
    const int channels = static_cast<int>(shape[1]), words = words_of(channels);
    std::size_t places = 1;
    for (std::size_t i = 2; i < shape.size(); ++i) places *= shape[i];
    const float* values = floats.data<float>();
    const Stored<float> thresholds(limits);
    constexpr std::size_t kPart = 256;  // places that a thread takes at a time
    const std::size_t parts = (places + kPart - 1) / kPart;
    Pack* const pack_part = chosen().pack;
    side_by_side(shape[0] * parts, [&](std::size_t begin, std::size_t end) {
        for (std::size_t part = begin; part < end; ++part) {
            const std::size_t row = part / parts, first = part % parts * kPart, last = std::min(places, first + kPart);
            pack_part(
                values + row * channels * places, thresholds.get(), strict, channels, places, first, last,
                bits + row * places * words);
        }
    });
}

void BinaryPack::validate_and_infer_types() {
    set_output_type(0, ov::element::i32, packed_shape(get_input_partial_shape(0)));
}

bool BinaryPack::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    outputs[0].set_shape(packed_shape(inputs[0].get_shape()));
    pack(inputs[0], inputs[1], strict_ != 0, words_in(outputs[0]));
    return true;
}

Window BinaryMaxPool::window() const {
    return {number(kernel_shape_.at(0)), number(kernel_shape_.at(1)), number(strides_.at(0)),   number(strides_.at(1)),
            number(dilations_.at(0)),    number(dilations_.at(1)),    number(pads_.at(0)),      number(pads_.at(1)),
            number(pads_.at(2)),         number(pads_.at(3))};
}

void BinaryMaxPool::validate_and_infer_types() {
    const ov::PartialShape given = get_input_partial_shape(0);
    ov::PartialShape pooled = ov::PartialShape::dynamic(4);
    if (given.rank().is_static()) {
        OPENVINO_ASSERT(given.rank().get_length() == 4, "BinaryMaxPool needs rows, height, width and words");
        pooled[0] = given[0];
        pooled[3] = given[3];
        if (given[1].is_static()) pooled[1] = window().out_height(number(given[1].get_length()));
        if (given[2].is_static()) pooled[2] = window().out_width(number(given[2].get_length()));
    }
    set_output_type(0, ov::element::i32, pooled);
}

std::shared_ptr<ov::Node> BinaryMaxPool::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<BinaryMaxPool>();
    copy->kernel_shape_ = kernel_shape_;
    copy->strides_ = strides_;
    copy->dilations_ = dilations_;
    copy->pads_ = pads_;
    copy->set_arguments(arguments);
    copy->constructor_validate_and_infer_types();
    return copy;
}

bool BinaryMaxPool::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("kernel_shape", kernel_shape_);
    visitor.on_attribute("strides", strides_);
    visitor.on_attribute("dilations", dilations_);
    visitor.on_attribute("pads", pads_);
    return true;
}

bool BinaryMaxPool::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const ov::Shape shape = inputs[0].get_shape();
    const int height = static_cast<int>(shape[1]), width = static_cast<int>(shape[2]);
    const Window pool = window();
    const int out_height = pool.out_height(height), out_width = pool.out_width(width);
    OPENVINO_ASSERT(out_height > 0 && out_width > 0, "BinaryMaxPool with an input smaller than its window");
    const std::size_t from = static_cast<std::size_t>(height) * width * shape[3];
    const std::size_t to = static_cast<std::size_t>(out_height) * out_width * shape[3];
    outputs[0].set_shape({shape[0], static_cast<std::size_t>(out_height), static_cast<std::size_t>(out_width), shape[3]});
    const std::uint32_t* bits = words_in(inputs[0]);
    std::uint32_t* out = words_in(outputs[0]);
    side_by_side(shape[0], [&](std::size_t begin, std::size_t end) {
        for (std::size_t row = begin; row < end; ++row)
            max_pool(pool, bits + row * from, height, width, shape[3], out + row * to);
    });
    return true;
}

}  // namespace bnn
