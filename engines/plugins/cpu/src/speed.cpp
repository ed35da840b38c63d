// How fast a kernel multiplies, in cycles, with nothing around it.
#include <algorithm>
#include <chrono>
#include <limits>
#include <random>
#include <vector>

#include "convolution.hpp"
#include "dispatch.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

// An addition that waits for the one before takes a cycle: counters of cycles are not to be had in a virtual machine.
double cycles_per_second() {
    constexpr int kAdditions = 200000;
    std::uint64_t sum = 0, step = 3;  // in registers: some processors add constants for nothing
    __asm__ volatile("" : "+r"(step));
    const auto began = Clock::now();
    for (int i = 0; i < kAdditions; ++i) {
        sum += step;
        __asm__ volatile("" : "+r"(sum));
    }
    return kAdditions / seconds_since(began);
}

std::vector<std::uint32_t> random_words(std::size_t count) {
    std::mt19937 engine(0);
    std::vector<std::uint32_t> found(count);
    for (auto& word : found) word = engine();
    return found;
}

// Rows and weights as a kernel wants them.
class Product {
  public:
    Product(const bnn::Kernel& kernel, int places, int channels, int words)
        : kernel_(kernel), places_(places), channels_(channels), words_(words),
          rows_(random_words(static_cast<std::size_t>(places) * words)),
          arranged_((places + bnn::kMostPixels - 1) / bnn::kMostPixels),
          stride_(bnn::rounded_up(channels, kernel.lanes)), dots_(static_cast<std::size_t>(bnn::kMostPixels) * stride_) {
        weights_.resize(kernel.prepared_bytes(channels, words));
        kernel.prepare(random_words(static_cast<std::size_t>(channels) * words).data(), channels, words, weights_.data());
        if (kernel.arrange == nullptr) return;
        for (int part = 0; part < parts(); ++part) {
            arranged_[part].resize(kernel.arranged_bytes(count(part), words));
            kernel.arrange(rows(part), count(part), words, arranged_[part].data());
        }
    }

    void run() {
        for (int part = 0; part < parts(); ++part) {
            const void* from = kernel_.arrange != nullptr ? static_cast<const void*>(arranged_[part].data()) : rows(part);
            kernel_.multiply(from, count(part), words_, weights_.data(), channels_, words_ * 32, dots_.data(), stride_);
        }
    }

  private:
    int parts() const { return static_cast<int>(arranged_.size()); }
    int count(int part) const { return std::min(bnn::kMostPixels, places_ - part * bnn::kMostPixels); }
    const std::uint32_t* rows(int part) const {
        return rows_.data() + static_cast<std::size_t>(part) * bnn::kMostPixels * words_;
    }

    const bnn::Kernel& kernel_;
    int places_, channels_, words_;
    std::vector<std::uint32_t> rows_;
    std::vector<bnn::Buffer> arranged_;
    bnn::Buffer weights_;
    int stride_;
    std::vector<std::int32_t> dots_;
};

}  // namespace

// Multiply-accumulates a cycle of `places` rows of `words` by as many words of weights for each channel, all of them as
// the kernel wants them: the best of so many runs, by the fastest clock seen beside them. 0 where it is not usable here.
extern "C" __attribute__((visibility("default"))) double bnn_product_rate(
    int index, int places, int channels, int words, int runs) {
    const bnn::Kernel* const* kernels = bnn::compiled();
    for (int i = 0; i < index && *kernels != nullptr; ++i) ++kernels;
    if (*kernels == nullptr || !(*kernels)->usable()) return 0;
    Product product(**kernels, places, channels, words);
    double clock = 0, shortest = std::numeric_limits<double>::infinity();
    for (int run = 0; run < runs; ++run) {
        clock = std::max(clock, cycles_per_second());
        const auto began = Clock::now();
        product.run();
        shortest = std::min(shortest, seconds_since(began));
    }
    return 32.0 * places * channels * words / (shortest * clock);
}
