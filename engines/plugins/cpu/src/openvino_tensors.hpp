// What all operators share: tensors as words, threads, names of attributes.
#pragma once

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <openvino/op/op.hpp>
#include <string>
#include <vector>

namespace bnn {

using Names = std::map<std::string, std::string>;

// In one part where there is one thread: every part has memory of its own to set up.
inline void side_by_side(std::size_t count, const std::function<void(std::size_t, std::size_t)>& work) {
    if (tbb::this_task_arena::max_concurrency() == 1) return work(0, count);
    tbb::parallel_for(
        tbb::blocked_range<std::size_t>(0, count), [&](const auto& part) { work(part.begin(), part.end()); });
}

inline const std::uint32_t* words_in(const ov::Tensor& tensor) {
    return reinterpret_cast<const std::uint32_t*>(tensor.data<std::int32_t>());
}

inline std::uint32_t* words_in(ov::Tensor& tensor) { return reinterpret_cast<std::uint32_t*>(tensor.data<std::int32_t>()); }

// A constant, which lies on any byte where an engine was imported: in its file other constants are before it.
template <typename T>
class Stored {
  public:
    explicit Stored(const ov::Tensor& tensor) : data_(tensor.data<T>()) {
        if (reinterpret_cast<std::uintptr_t>(data_) % alignof(T) == 0) return;
        copy_.resize(tensor.get_size());
        std::memcpy(copy_.data(), tensor.data(), tensor.get_byte_size());
        data_ = copy_.data();
    }
    const T* get() const { return data_; }
    const std::uint32_t* words() const { return reinterpret_cast<const std::uint32_t*>(data_); }

  private:
    std::vector<T> copy_;
    const T* data_;
};

inline int number(std::int64_t value) { return static_cast<int>(value); }

}  // namespace bnn
