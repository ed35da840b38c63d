// The operators of domain `bnn` for OpenVINO: shapes, attributes, and the kernels behind them.
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>

#include <memory>
#include <mutex>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>
#include <openvino/op/op.hpp>

#include "convolution.hpp"
#include "dispatch.hpp"
#include "pack.hpp"

namespace bnn {
namespace {

void side_by_side(std::size_t count, const std::function<void(std::size_t, std::size_t)>& work) {
    tbb::parallel_for(
        tbb::blocked_range<std::size_t>(0, count), [&](const auto& part) { work(part.begin(), part.end()); });
}

const std::uint32_t* words_in(const ov::Tensor& tensor) {
    return reinterpret_cast<const std::uint32_t*>(tensor.data<std::int32_t>());
}

// x f32 [rows, channels, places...], thresholds f32 [channels] -> i32 [rows, places..., words]
class BinaryPack : public ov::op::Op {
  public:
    OPENVINO_OP("BinaryPack", "bnn");
    BinaryPack() = default;
    BinaryPack(const ov::OutputVector& arguments, std::int64_t strict) : Op(arguments), strict_(strict) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        const ov::PartialShape given = get_input_partial_shape(0);
        ov::PartialShape packed = ov::PartialShape::dynamic();
        if (given.rank().is_static()) {
            OPENVINO_ASSERT(given.rank().get_length() >= 2, "BinaryPack needs rows and channels");
            std::vector<ov::Dimension> sizes{given[0]};
            sizes.insert(sizes.end(), given.begin() + 2, given.end());
            sizes.push_back(
                given[1].is_static() ? ov::Dimension(words_of(static_cast<int>(given[1].get_length()))) : ov::Dimension());
            packed = ov::PartialShape(sizes);
        }
        set_output_type(0, ov::element::i32, packed);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        return std::make_shared<BinaryPack>(arguments, strict_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("strict", strict_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape shape = inputs[0].get_shape();
        const int channels = static_cast<int>(shape[1]), words = words_of(channels);
        OPENVINO_ASSERT(inputs[1].get_size() == shape[1], "BinaryPack has another threshold count than channels");
        ov::Shape packed{shape[0]};
        std::size_t places = 1;
        for (std::size_t i = 2; i < shape.size(); ++i) {
            packed.push_back(shape[i]);
            places *= shape[i];
        }
        packed.push_back(words);
        outputs[0].set_shape(packed);
        const float* values = inputs[0].data<float>();
        const float* thresholds = inputs[1].data<float>();
        auto* bits = reinterpret_cast<std::uint32_t*>(outputs[0].data<std::int32_t>());
        side_by_side(shape[0], [&](std::size_t begin, std::size_t end) {
            for (std::size_t row = begin; row < end; ++row)
                pack(
                    values + row * channels * places, thresholds, strict_ != 0, channels, places,
                    bits + row * places * words);
        });
        return true;
    }

  private:
    std::int64_t strict_ = 0;
};

// What both convolutions share: attributes, sizes, and the prepared weights.
class Convolving : public ov::op::Op {
  public:
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("channels", channels_);
        visitor.on_attribute("group", groups_);
        visitor.on_attribute("strides", strides_);
        visitor.on_attribute("dilations", dilations_);
        visitor.on_attribute("pads", pads_);
        visitor.on_attribute("pad_value", pad_value_);
        return true;
    }

    bool has_evaluate() const override { return true; }

  protected:
    void copy_attributes(const Convolving& other) {
        channels_ = other.channels_;
        groups_ = other.groups_;
        strides_ = other.strides_;
        dilations_ = other.dilations_;
        pads_ = other.pads_;
        pad_value_ = other.pad_value_;
    }

    struct Sizes {
        ov::Dimension rows, height, width;
        std::size_t filters;
    };

    Sizes out_sizes() const {
        const ov::PartialShape given = get_input_partial_shape(0), weights = get_input_partial_shape(1);
        OPENVINO_ASSERT(weights.is_static(), get_type_name(), " has stored weights");
        OPENVINO_ASSERT(
            channels_ > 0 && groups_ > 0 && channels_ % groups_ == 0, get_type_name(), " with groups that do not fit");
        Sizes found{ov::Dimension(), ov::Dimension(), ov::Dimension(), weights.to_shape()[0]};
        if (given.rank().is_dynamic()) return found;
        found.rows = given[0];
        if (given[1].is_dynamic() || given[2].is_dynamic()) return found;
        const Geometry g = geometry(given[1].get_length(), given[2].get_length(), weights.to_shape());
        OPENVINO_ASSERT(
            g.height + g.pad_top + g.pad_bottom >= (g.kernel_height - 1) * g.dilation_height + 1 &&
                g.width + g.pad_left + g.pad_right >= (g.kernel_width - 1) * g.dilation_width + 1,
            get_type_name(), " with an input smaller than its kernel");
        found.height = g.out_height();
        found.width = g.out_width();
        return found;
    }

    Geometry geometry_of(const ov::TensorVector& inputs) const {
        const ov::Shape shape = inputs[0].get_shape();
        const Geometry g = geometry(shape.at(1), shape.at(2), inputs[1].get_shape());
        OPENVINO_ASSERT(
            shape.size() == 4 && shape[3] == static_cast<std::size_t>(g.group_words() * g.groups), get_type_name(),
            " was given other channels than its weights have");
        return g;
    }

    // The weights as the kernel reads them, prepared by the first run; again where the size of the input or the kernel
    // is another.
    std::shared_ptr<const Convolution> layer_for(const Geometry& g, const std::uint32_t* weights) const {
        const std::lock_guard<std::mutex> turn(turn_);
        const Kernel& kernel = chosen();
        if (layer_ == nullptr || &layer_->kernel() != &kernel || height_ != g.height || width_ != g.width) {
            layer_ = std::make_shared<const Convolution>(g, weights, kernel);
            height_ = g.height;
            width_ = g.width;
        }
        return layer_;
    }

  private:
    Geometry geometry(std::int64_t height, std::int64_t width, const ov::Shape& weights) const {
        const auto number = [](std::int64_t value) { return static_cast<int>(value); };
        return {
            number(channels_), number(height), number(width), static_cast<int>(weights[0]), number(groups_),
            static_cast<int>(weights[1]), static_cast<int>(weights[2]), number(strides_.at(0)), number(strides_.at(1)),
            number(dilations_.at(0)), number(dilations_.at(1)), number(pads_.at(0)), number(pads_.at(1)),
            number(pads_.at(2)), number(pads_.at(3)), pad_value_ == 1};
    }

    std::int64_t channels_ = 0, groups_ = 1, pad_value_ = 0;
    std::vector<std::int64_t> strides_{1, 1}, dilations_{1, 1}, pads_{0, 0, 0, 0};
    mutable std::mutex turn_;
    mutable std::shared_ptr<const Convolution> layer_;
    mutable int height_ = -1, width_ = -1;
};

// bits i32 [rows, height, width, words], weights i32 [filters, kernel height, kernel width, words of a group], multiplier
// f32 [filters], bias f32 [filters] -> f32 [rows, filters, out height, out width]
class BinaryConv2d : public Convolving {
  public:
    OPENVINO_OP("BinaryConv2d", "bnn");

    void validate_and_infer_types() override {
        const Sizes sizes = out_sizes();
        set_output_type(0, ov::element::f32, {sizes.rows, ov::Dimension(sizes.filters), sizes.height, sizes.width});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        auto copy = std::make_shared<BinaryConv2d>();
        copy->copy_attributes(*this);
        copy->set_arguments(arguments);
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const Geometry g = geometry_of(inputs);
        const auto layer = layer_for(g, words_in(inputs[1]));
        const std::size_t rows = inputs[0].get_shape()[0];
        outputs[0].set_shape(
            {rows, static_cast<std::size_t>(g.filters), static_cast<std::size_t>(g.out_height()),
             static_cast<std::size_t>(g.out_width())});
        const Floats floats{inputs[2].data<float>(), inputs[3].data<float>(), outputs[0].data<float>()};
        layer->run(words_in(inputs[0]), rows, floats, side_by_side);
        note_run(layer->kernel());
        return true;
    }
};

// The same bits and weights, thresholds i32 [filters], flips i32 [words] -> i32 [rows, out height, out width, words]
class BinaryThreshold2d : public Convolving {
  public:
    OPENVINO_OP("BinaryThreshold2d", "bnn");

    void validate_and_infer_types() override {
        const Sizes sizes = out_sizes();
        const ov::Dimension words(words_of(static_cast<int>(sizes.filters)));
        set_output_type(0, ov::element::i32, {sizes.rows, sizes.height, sizes.width, words});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        auto copy = std::make_shared<BinaryThreshold2d>();
        copy->copy_attributes(*this);
        copy->set_arguments(arguments);
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const Geometry g = geometry_of(inputs);
        OPENVINO_ASSERT(
            g.groups == 1 || g.filters / g.groups % 32 == 0, "BinaryThreshold2d with groups that share a word");
        OPENVINO_ASSERT(
            inputs[2].get_size() == static_cast<std::size_t>(g.filters) &&
                inputs[3].get_size() == static_cast<std::size_t>(words_of(g.filters)),
            "BinaryThreshold2d has other thresholds than filters");
        const auto layer = layer_for(g, words_in(inputs[1]));
        const std::size_t rows = inputs[0].get_shape()[0];
        outputs[0].set_shape(
            {rows, static_cast<std::size_t>(g.out_height()), static_cast<std::size_t>(g.out_width()),
             static_cast<std::size_t>(words_of(g.filters))});
        auto* out = reinterpret_cast<std::uint32_t*>(outputs[0].data<std::int32_t>());
        layer->run(words_in(inputs[0]), rows, Bits{inputs[2].data<std::int32_t>(), words_in(inputs[3]), out}, side_by_side);
        note_run(layer->kernel());
        return true;
    }
};

using Names = std::map<std::string, std::string>;

Names convolving() {
    return {{"channels", "channels"}, {"group", "group"}, {"strides", "strides"}, {"dilations", "dilations"},
            {"pads", "pads"}, {"pad_value", "pad_value"}};
}

}  // namespace
}  // namespace bnn

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<bnn::BinaryPack>>(),
    std::make_shared<ov::OpExtension<bnn::BinaryConv2d>>(),
    std::make_shared<ov::OpExtension<bnn::BinaryThreshold2d>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<bnn::BinaryPack>>("BinaryPack", "bnn", bnn::Names{{"strict", "strict"}}),
    std::make_shared<ov::frontend::onnx::OpExtension<bnn::BinaryConv2d>>("BinaryConv2d", "bnn", bnn::convolving()),
    std::make_shared<ov::frontend::onnx::OpExtension<bnn::BinaryThreshold2d>>("BinaryThreshold2d", "bnn", bnn::convolving()),
}))
