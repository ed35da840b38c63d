#include "openvino_layers.hpp"

#include "dispatch.hpp"
#include "pack.hpp"

namespace bnn {
namespace {

template <class Operator>
std::shared_ptr<ov::Node> bound(std::shared_ptr<Operator> copy, const ov::OutputVector& arguments) {
    copy->set_arguments(arguments);
    copy->constructor_validate_and_infer_types();
    return copy;
}

// Where either has one row.
void add_rows(const ov::Tensor& one, const ov::Tensor& other, ov::Tensor& out) {
    ov::Shape shape = one.get_shape(), others = other.get_shape();
    const std::size_t rows = shape[0], other_rows = others[0];
    others[0] = rows;
    OPENVINO_ASSERT(shape == others && (rows == 1 || other_rows == 1), "a layer was given another shape to add than it has");
    shape[0] = 1;
    const std::size_t size = ov::shape_size(shape);
    shape[0] = rows == 1 ? other_rows : rows;
    out.set_shape(shape);
    const float *first = one.data<float>(), *second = other.data<float>();
    float* to = out.data<float>();
    for (std::size_t row = 0; row < shape[0]; ++row, to += size)
        for (std::size_t i = 0; i < size; ++i)
            to[i] = first[(rows == 1 ? 0 : row) * size + i] + second[(other_rows == 1 ? 0 : row) * size + i];
}

}  // namespace

std::shared_ptr<const Convolution> Layer::layer_for(const Geometry& g, const ov::Tensor& weights) const {
    const std::lock_guard<std::mutex> turn(turn_);
    const Kernel& kernel = chosen();
    if (layer_ == nullptr || &layer_->kernel() != &kernel)
        layer_ = std::make_shared<const Convolution>(g, Stored<std::int32_t>(weights).words(), kernel);
    return layer_;
}

void Layer::run_to_floats(
    const Geometry& g, std::size_t batch, const ov::TensorVector& inputs, ov::Tensor& out, bool channels_last,
    const float* added) const {
    const std::size_t filters = g.filters;
    const ov::Shape bends = inputs[4].get_shape();
    OPENVINO_ASSERT(
        inputs[2].get_size() == filters && inputs[3].get_size() == filters, get_type_name(),
        " has another multiplier or bias count than filters");
    OPENVINO_ASSERT(
        bends.size() == 2 && bends[0] == 3 && (bends[1] == 1 || bends[1] == filters), get_type_name(),
        " has an activation that is not three rows of one column, or of one for each filter");
    const Stored<float> multiplier(inputs[2]), bias(inputs[3]), activations(inputs[4]);
    const Activation activation{activations.get(), static_cast<int>(bends[1])};
    const auto layer = layer_for(g, inputs[1]);
    layer->run(
        g, words_in(inputs[0]), batch,
        Floats{multiplier.get(), bias.get(), activation, out.data<float>(), channels_last, added}, side_by_side);
    note_run(layer->kernel());
}

void Layer::run_to_bits(const Geometry& g, std::size_t batch, const ov::TensorVector& inputs, ov::Tensor& out) const {
    OPENVINO_ASSERT(g.groups == 1 || g.filters / g.groups % 32 == 0, get_type_name(), " with groups that share a word");
    OPENVINO_ASSERT(
        inputs[2].get_size() == static_cast<std::size_t>(g.filters) &&
            inputs[3].get_size() == static_cast<std::size_t>(words_of(g.filters)),
        get_type_name(), " has other thresholds than filters");
    const auto layer = layer_for(g, inputs[1]);
    const Stored<std::int32_t> thresholds(inputs[2]), flips(inputs[3]);
    const Bits bits{thresholds.get(), flips.words(), words_in(out)};
    layer->run(g, words_in(inputs[0]), batch, bits, side_by_side);
    note_run(layer->kernel());
}

Names Convolving::names() {
    return {{"channels", "channels"}, {"group", "group"}, {"strides", "strides"}, {"dilations", "dilations"},
            {"pads", "pads"}, {"pad_value", "pad_value"}, {"low", "low"}};
}

bool Convolving::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("channels", channels_);
    visitor.on_attribute("group", groups_);
    visitor.on_attribute("strides", strides_);
    visitor.on_attribute("dilations", dilations_);
    visitor.on_attribute("pads", pads_);
    visitor.on_attribute("pad_value", pad_value_);
    visitor.on_attribute("low", low_);
    return true;
}

void Convolving::copy_attributes(const Convolving& other) {
    channels_ = other.channels_;
    groups_ = other.groups_;
    strides_ = other.strides_;
    dilations_ = other.dilations_;
    pads_ = other.pads_;
    pad_value_ = other.pad_value_;
    low_ = other.low_;
}

Convolving::Sizes Convolving::out_sizes() const {
    const ov::PartialShape given = bits_shape(), weights = weights_shape();
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

Geometry Convolving::geometry_of(const ov::TensorVector& inputs) const {
    const ov::Shape shape = inputs[0].get_shape();
    const Geometry g = geometry(shape.at(1), shape.at(2), inputs[1].get_shape());
    OPENVINO_ASSERT(
        shape.size() == 4 && shape[3] == static_cast<std::size_t>(g.group_words() * g.groups), get_type_name(),
        " was given other channels than its weights have");
    return g;
}

Geometry Convolving::geometry(std::int64_t height, std::int64_t width, const ov::Shape& weights) const {
    return {
        number(channels_), number(height), number(width), static_cast<int>(weights[0]), number(groups_),
        static_cast<int>(weights[1]), static_cast<int>(weights[2]), number(strides_.at(0)), number(strides_.at(1)),
        number(dilations_.at(0)), number(dilations_.at(1)), number(pads_.at(0)), number(pads_.at(1)),
        number(pads_.at(2)), number(pads_.at(3)), pad_value_ == 1, low_ == 0};
}

void BinaryConv2d::validate_and_infer_types() {
    const Sizes sizes = out_sizes();
    set_output_type(0, ov::element::f32, {sizes.rows, ov::Dimension(sizes.filters), sizes.height, sizes.width});
}

std::shared_ptr<ov::Node> BinaryConv2d::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<BinaryConv2d>();
    copy->copy_attributes(*this);
    return bound(copy, arguments);
}

bool BinaryConv2d::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const Geometry g = geometry_of(inputs);
    const std::size_t rows = inputs[0].get_shape()[0];
    outputs[0].set_shape(
        {rows, static_cast<std::size_t>(g.filters), static_cast<std::size_t>(g.out_height()),
         static_cast<std::size_t>(g.out_width())});
    run_to_floats(g, rows, inputs, outputs[0], false);
    return true;
}

void AddingConv2d::validate_and_infer_types() {
    BinaryConv2d::validate_and_infer_types();
    ov::PartialShape sums = get_output_partial_shape(0);
    OPENVINO_ASSERT(
        ov::PartialShape::broadcast_merge_into(sums, added_shape(), ov::op::AutoBroadcastType::NUMPY),
        get_type_name(), " adds another shape than it has");
    set_output_type(0, ov::element::f32, sums);
}

std::shared_ptr<ov::Node> AddingConv2d::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<AddingConv2d>();
    copy->copy_attributes(*this);
    return bound(copy, arguments);
}

bool AddingConv2d::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const Geometry g = geometry_of(inputs);
    const std::size_t rows = inputs[0].get_shape()[0];
    const ov::Shape own{
        rows, static_cast<std::size_t>(g.filters), static_cast<std::size_t>(g.out_height()),
        static_cast<std::size_t>(g.out_width())};
    const ov::Tensor& added = inputs[5];
    if (added.get_shape() == own) {
        outputs[0].set_shape(own);
        run_to_floats(g, rows, inputs, outputs[0], false, added.data<float>());
        return true;
    }
    ov::Tensor sums(ov::element::f32, own);
    run_to_floats(g, rows, inputs, sums, false);
    add_rows(sums, added, outputs[0]);
    return true;
}

void BinaryThreshold2d::validate_and_infer_types() {
    const Sizes sizes = out_sizes();
    const ov::Dimension words(words_of(static_cast<int>(sizes.filters)));
    set_output_type(0, ov::element::i32, {sizes.rows, sizes.height, sizes.width, words});
}

std::shared_ptr<ov::Node> BinaryThreshold2d::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<BinaryThreshold2d>();
    copy->copy_attributes(*this);
    return bound(copy, arguments);
}

bool BinaryThreshold2d::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const Geometry g = geometry_of(inputs);
    const std::size_t rows = inputs[0].get_shape()[0];
    outputs[0].set_shape(
        {rows, static_cast<std::size_t>(g.out_height()), static_cast<std::size_t>(g.out_width()),
         static_cast<std::size_t>(words_of(g.filters))});
    run_to_bits(g, rows, inputs, outputs[0]);
    return true;
}

bool Multiplying::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("channels", channels_);
    visitor.on_attribute("low", low_);
    return true;
}

void Multiplying::copy_attributes(const Multiplying& other) {
    channels_ = other.channels_;
    low_ = other.low_;
}

std::size_t Multiplying::filters() const {
    const ov::PartialShape weights = weights_shape();
    OPENVINO_ASSERT(weights.is_static() && channels_ > 0, get_type_name(), " has stored weights, and channels");
    return weights.to_shape()[0];
}

ov::Dimension Multiplying::rows() const {
    const ov::PartialShape given = bits_shape();
    return given.rank().is_static() ? given[0] : ov::Dimension();
}

Geometry Multiplying::geometry_of(const ov::TensorVector& inputs) const {
    const ov::Shape shape = inputs[0].get_shape(), weights = inputs[1].get_shape();
    const int rows = static_cast<int>(shape.at(0)), filters = static_cast<int>(weights.at(0));
    const Geometry g{number(channels_), 1, rows, filters, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, true, low_ == 0};
    const std::size_t words = g.group_words();
    OPENVINO_ASSERT(
        shape.size() == 2 && weights.size() == 2 && shape[1] == words && weights[1] == words, get_type_name(),
        " was given other channels than its weights have");
    return g;
}

void BinaryGemm::validate_and_infer_types() { set_output_type(0, ov::element::f32, {rows(), ov::Dimension(filters())}); }

std::shared_ptr<ov::Node> BinaryGemm::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<BinaryGemm>();
    copy->copy_attributes(*this);
    return bound(copy, arguments);
}

bool BinaryGemm::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const Geometry g = geometry_of(inputs);
    outputs[0].set_shape({static_cast<std::size_t>(g.width), static_cast<std::size_t>(g.filters)});
    run_to_floats(g, 1, inputs, outputs[0], true);
    return true;
}

void BinaryThreshold::validate_and_infer_types() {
    set_output_type(0, ov::element::i32, {rows(), ov::Dimension(words_of(static_cast<int>(filters())))});
}

std::shared_ptr<ov::Node> BinaryThreshold::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto copy = std::make_shared<BinaryThreshold>();
    copy->copy_attributes(*this);
    return bound(copy, arguments);
}

bool BinaryThreshold::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const Geometry g = geometry_of(inputs);
    outputs[0].set_shape({static_cast<std::size_t>(g.width), static_cast<std::size_t>(words_of(g.filters))});
    run_to_bits(g, 1, inputs, outputs[0]);
    return true;
}

}  // namespace bnn
