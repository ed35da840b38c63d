// Operators that move bits and multiply nothing: packing and pooling.
#pragma once

#include <memory>
#include <vector>

#include "openvino_tensors.hpp"
#include "pack.hpp"
#include "pool.hpp"

namespace bnn {

// Of [rows, channels, places...]: [rows, places..., words].
ov::PartialShape packed_shape(const ov::PartialShape& given);
ov::Shape packed_shape(const ov::Shape& given);

// All rows side by side, by the kernel that is chosen; `bits` has `packed_shape`. limits: one a channel
void pack(const ov::Tensor& floats, const ov::Tensor& limits, bool strict, std::uint32_t* bits);

// x f32 [rows, channels, places...], thresholds f32 [channels] -> i32 [rows, places..., words]
class BinaryPack : public ov::op::Op {
  public:
    OPENVINO_OP("BinaryPack", "bnn");
    static Names names() { return {{"strict", "strict"}}; }

    BinaryPack() = default;
    BinaryPack(const ov::OutputVector& arguments, std::int64_t strict) : Op(arguments), strict_(strict) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        return std::make_shared<BinaryPack>(arguments, strict_);
    }
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("strict", strict_);
        return true;
    }
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

  private:
    std::int64_t strict_ = 0;
};

// bits i32 [rows, height, width, words] -> i32 [rows, out height, out width, words]
class BinaryMaxPool : public ov::op::Op {
  public:
    OPENVINO_OP("BinaryMaxPool", "bnn");
    static Names names() {
        return {{"kernel_shape", "kernel_shape"}, {"strides", "strides"}, {"dilations", "dilations"}, {"pads", "pads"}};
    }

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

  private:
    Window window() const;

    std::vector<std::int64_t> kernel_shape_{1, 1}, strides_{1, 1}, dilations_{1, 1}, pads_{0, 0, 0, 0};
};

}  // namespace bnn
