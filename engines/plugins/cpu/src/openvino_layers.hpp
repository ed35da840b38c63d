// Operators that multiply bits with stored weights.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "convolution.hpp"
#include "openvino_tensors.hpp"

namespace bnn {

// What all of them share: the weights as the kernel reads them, and how results are written.
class Layer : public ov::op::Op {
  public:
    bool has_evaluate() const override { return true; }

  protected:
    // Of what is read, in the order of `evaluate`.
    virtual ov::PartialShape read_shape(std::size_t number) const { return get_input_partial_shape(number); }
    // Of what need not be where a layer of bits has it.
    virtual ov::PartialShape bits_shape() const { return read_shape(0); }
    virtual ov::PartialShape weights_shape() const { return read_shape(1); }
    virtual ov::PartialShape added_shape() const { return read_shape(5); }

    // Prepared by the first run; again where another kernel was pinned.
    std::shared_ptr<const Convolution> layer_for(const Geometry& g, const ov::Tensor& weights) const;
    // Inputs: bits, weights, multiplier, bias, activation. added: as `out`, or none
    void run_to_floats(
        const Geometry& g, std::size_t batch, const ov::TensorVector& inputs, ov::Tensor& out, bool channels_last,
        const float* added = nullptr) const;
    // Inputs: bits, weights, thresholds, flips
    void run_to_bits(const Geometry& g, std::size_t batch, const ov::TensorVector& inputs, ov::Tensor& out) const;

  private:
    mutable std::mutex turn_;
    mutable std::shared_ptr<const Convolution> layer_;
};

// bits i32 [rows, height, width, words], weights i32 [filters, kernel height, kernel width, words of a group]
class Convolving : public Layer {
  public:
    static Names names();
    bool visit_attributes(ov::AttributeVisitor& visitor) override;

  protected:
    struct Sizes {
        ov::Dimension rows, height, width;
        std::size_t filters;
    };

    void copy_attributes(const Convolving& other);
    Sizes out_sizes() const;
    Geometry geometry_of(const ov::TensorVector& inputs) const;

  private:
    Geometry geometry(std::int64_t height, std::int64_t width, const ov::Shape& weights) const;

    std::int64_t channels_ = 0, groups_ = 1, pad_value_ = 0, low_ = -1;
    std::vector<std::int64_t> strides_{1, 1}, dilations_{1, 1}, pads_{0, 0, 0, 0};
};

// -> f32 [rows, filters, out height, out width]
class BinaryConv2d : public Convolving {
  public:
    OPENVINO_OP("BinaryConv2d", "bnn");
    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
};

// And f32 [rows, filters, out height, out width], which is added: one of them may have one row, and is added to all.
// No file has them, as those that pack.
class AddingConv2d : public BinaryConv2d {
  public:
    OPENVINO_OP("AddingBinaryConv2d", "bnn");
    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
};

// -> i32 [rows, out height, out width, words]
class BinaryThreshold2d : public Convolving {
  public:
    OPENVINO_OP("BinaryThreshold2d", "bnn");
    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
};

// bits i32 [rows, words], weights i32 [filters, words]
class Multiplying : public Layer {
  public:
    static Names names() { return {{"channels", "channels"}, {"low", "low"}}; }
    bool visit_attributes(ov::AttributeVisitor& visitor) override;

  protected:
    void copy_attributes(const Multiplying& other);
    std::size_t filters() const;
    ov::Dimension rows() const;
    Geometry geometry_of(const ov::TensorVector& inputs) const;  // one row of as many pixels as there are rows

  private:
    std::int64_t channels_ = 0, low_ = -1;
};

// -> f32 [rows, filters]
class BinaryGemm : public Multiplying {
  public:
    OPENVINO_OP("BinaryGemm", "bnn");
    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
};

// -> i32 [rows, words]
class BinaryThreshold : public Multiplying {
  public:
    OPENVINO_OP("BinaryThreshold", "bnn");
    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
};

}  // namespace bnn
