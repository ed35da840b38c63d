// The operators of domain `bnn`, as OpenVINO finds them when it loads the extension, and when it reads ONNX.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "openvino_bits.hpp"
#include "openvino_layers.hpp"

namespace bnn {
namespace {

template <class Operator>
std::shared_ptr<ov::Extension> in_onnx() {
    return std::make_shared<ov::frontend::onnx::OpExtension<Operator>>(
        Operator::get_type_info_static().name, "bnn", Operator::names());
}

template <class... Operators>
std::vector<ov::Extension::Ptr> all() {
    return {std::make_shared<ov::OpExtension<Operators>>()..., in_onnx<Operators>()...};
}

}  // namespace
}  // namespace bnn

OPENVINO_CREATE_EXTENSIONS(
    (bnn::all<
        bnn::BinaryPack, bnn::BinaryConv2d, bnn::BinaryThreshold2d, bnn::BinaryGemm, bnn::BinaryThreshold,
        bnn::BinaryMaxPool>()));
