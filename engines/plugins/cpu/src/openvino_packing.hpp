// Layers that pack what they read: one operator where there would be two, and bits that nobody else sees.
#pragma once

#include <memory>
#include <string>

#include "openvino_bits.hpp"
#include "openvino_layers.hpp"

namespace bnn {

// x f32 [rows, channels, places...], thresholds f32 [channels], and what `Base` reads after its bits. No file has them:
// they are made of two operators that it may have.
template <class Base>
class Packing : public Base {
  public:
    static const ov::DiscreteTypeInfo& get_type_info_static() {
        static const std::string name = std::string("Packing") + Base::get_type_info_static().name;
        static ov::DiscreteTypeInfo info(name.c_str(), "bnn");
        info.hash();
        return info;
    }
    const ov::DiscreteTypeInfo& get_type_info() const override { return get_type_info_static(); }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        auto copy = std::make_shared<Packing>();
        copy->copy_attributes(*this);
        copy->set_arguments(arguments);
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("strict", strict_);
        return Base::visit_attributes(visitor);
    }

    // The bits are those of one run: others may run at the same time.
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape shape = packed_shape(inputs[0].get_shape());
        Buffer memory;
        memory.resize(ov::shape_size(shape) * sizeof(std::int32_t));
        ov::TensorVector own{ov::Tensor(ov::element::i32, shape, memory.data())};
        pack(inputs[0], inputs[1], strict_ != 0, words_in(own[0]));
        own.insert(own.end(), inputs.begin() + kOwn, inputs.end());
        return Base::evaluate(outputs, own);
    }

  protected:
    ov::PartialShape bits_shape() const override { return packed_shape(this->read_shape(0)); }
    ov::PartialShape weights_shape() const override { return this->read_shape(kOwn); }
    ov::PartialShape added_shape() const override { return this->read_shape(kOwn + 4); }
    void copy_attributes(const Packing& other) {
        Base::copy_attributes(other);
        strict_ = other.strict_;
    }

  private:
    static constexpr std::size_t kOwn = 2;  // of what is read, that stand where `Base` has its bits

    std::int64_t strict_ = 0;
};

}  // namespace bnn
