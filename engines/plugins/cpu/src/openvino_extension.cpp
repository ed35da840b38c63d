// The operators of domain `bnn`, as OpenVINO finds them when it loads the extension, and when it reads ONNX.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "openvino_bits.hpp"
#include "openvino_bundled.hpp"
#include "openvino_layers.hpp"
#include "openvino_packing.hpp"

namespace bnn {
namespace {

using Extensions = std::vector<ov::Extension::Ptr>;

template <class Operator>
ov::Extension::Ptr in_onnx() {
    return std::make_shared<ov::frontend::onnx::OpExtension<Operator>>(
        Operator::get_type_info_static().name, "bnn", Operator::names());
}

// What graphs may have, and blobs.
template <class... Operators>
Extensions in_graphs() {
    return {std::make_shared<ov::OpExtension<Operators>>()...};
}

// What files may have, too.
template <class... Operators>
Extensions in_files() {
    return {std::make_shared<ov::OpExtension<Operators>>()..., in_onnx<Operators>()...};
}

// What is made of a layer.
template <class Layer>
Extensions forms() {
    return in_graphs<Packing<Layer>, Bundled<Layer>, Bundled<Packing<Layer>>>();
}

Extensions all() {
    Extensions found =
        in_files<BinaryPack, BinaryConv2d, BinaryThreshold2d, BinaryGemm, BinaryThreshold, BinaryMaxPool>();
    const auto add = [&](const Extensions& further) { found.insert(found.end(), further.begin(), further.end()); };
    add(in_graphs<AddingConv2d>());
    add(forms<BinaryConv2d>());
    add(forms<AddingConv2d>());
    add(forms<BinaryThreshold2d>());
    add(forms<BinaryGemm>());
    add(forms<BinaryThreshold>());
    return found;
}

}  // namespace
}  // namespace bnn

OPENVINO_CREATE_EXTENSIONS(bnn::all());
