#include "openvino_bundled.hpp"

namespace bnn {
namespace {

constexpr std::size_t kWord = 4;  // bytes, of either type

ov::element::Type type_of(std::int64_t kind) {
    OPENVINO_ASSERT(kind == 1 || kind == 2, "a part of a bundle is of no known type");
    return kind == 1 ? ov::element::i32 : ov::element::f32;
}

}  // namespace

std::vector<Part> parts_of(const std::vector<std::int64_t>& numbers) {
    std::vector<Part> found;
    std::size_t words = 0, inputs = 0;
    for (auto at = numbers.begin(); at != numbers.end();) {
        const std::int64_t kind = *at++;
        if (kind == 0) {
            found.push_back({ov::element::dynamic, {}, inputs++});
            continue;
        }
        OPENVINO_ASSERT(at != numbers.end() && *at >= 0 && *at < numbers.end() - at, "a bundle that is cut off");
        const std::int64_t rank = *at++;
        found.push_back({type_of(kind), ov::Shape(at, at + rank), words});
        words += ov::shape_size(found.back().shape);
        at += rank;
    }
    return found;
}

std::size_t bundled_words(const std::vector<Part>& parts) {
    std::size_t words = 0;
    for (const Part& part : parts)
        if (part.type.is_static()) words += ov::shape_size(part.shape);
    return words;
}

ov::TensorVector unbundled(const std::vector<Part>& parts, const ov::TensorVector& inputs) {
    ov::TensorVector found;
    found.reserve(parts.size());
    // tensors of what is only read are made of the same pointers as others
    auto* const bundle = static_cast<std::uint8_t*>(const_cast<void*>(inputs.back().data()));
    for (const Part& part : parts) {
        if (part.type.is_static())
            found.emplace_back(part.type, part.shape, bundle + part.from * kWord);
        else
            found.push_back(inputs.at(part.from));
    }
    return found;
}

}  // namespace bnn
