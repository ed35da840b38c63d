// Layers whose stored inputs are one: OpenVINO makes a node of each input in every run where rows are not known before.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "openvino_layers.hpp"

namespace bnn {

// One of the things that a layer reads: an input, or a part of the last one, which is i32 [words].
struct Part {
    ov::element::Type type;  // dynamic where it is an input
    ov::Shape shape;
    std::size_t from;  // its first word, or the number of the input
};

// Of the attribute: for each part 0 (an input), or 1 (i32) or 2 (f32), its rank, and its shape.
std::vector<Part> parts_of(const std::vector<std::int64_t>& numbers);

std::size_t bundled_words(const std::vector<Part>& parts);

// What is read, in its order.
ov::TensorVector unbundled(const std::vector<Part>& parts, const ov::TensorVector& inputs);

// No file has them, as those that pack.
template <class Base>
class Bundled : public Base {
  public:
    static const ov::DiscreteTypeInfo& get_type_info_static() {
        static const std::string name = std::string("Bundled") + Base::get_type_info_static().name;
        static ov::DiscreteTypeInfo info(name.c_str(), "bnn");
        info.hash();
        return info;
    }
    const ov::DiscreteTypeInfo& get_type_info() const override { return get_type_info_static(); }

    void validate_and_infer_types() override {
        if (parts_.empty()) parts_ = parts_of(numbers_);
        const ov::PartialShape bundle = this->get_input_partial_shape(this->get_input_size() - 1);
        OPENVINO_ASSERT(
            bundle.is_static() && ov::shape_size(bundle.to_shape()) == bundled_words(parts_), this->get_type_name(),
            " has other words than its parts");
        Base::validate_and_infer_types();
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        auto copy = std::make_shared<Bundled>();
        copy->copy_attributes(*this);
        copy->numbers_ = numbers_;
        copy->parts_ = parts_;
        copy->set_arguments(arguments);
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("parts", numbers_);
        return Base::visit_attributes(visitor);
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        return Base::evaluate(outputs, unbundled(parts_, inputs));
    }

  protected:
    ov::PartialShape read_shape(std::size_t number) const override {
        const Part& part = parts_.at(number);
        return part.type.is_static() ? ov::PartialShape(part.shape) : this->get_input_partial_shape(part.from);
    }

  private:
    std::vector<std::int64_t> numbers_;
    std::vector<Part> parts_;
};

}  // namespace bnn
