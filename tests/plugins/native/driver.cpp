// Calls the kernels for whoever writes to standard input, and answers on standard output; all numbers as they lie in memory.
//
// Request: i32 what; then for `kernels` nothing, else i32 kernel, i32 count, i32[count] shape, i64 rows, i64 bytes of the
// answer, and five arrays, each i64 bytes and its data: those of the function called. Answer: i64 bytes (-1: not usable here), and the data.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

extern "C" {
const char* bnn_kernel_name(int index);
int bnn_kernel_usable(int index);
void bnn_pack(
    const float* values, const float* thresholds, int strict, int channels, std::size_t places, std::uint32_t* bits);
int bnn_convolve(
    int index, const int* shape, const std::uint32_t* bits, std::size_t batch, const std::uint32_t* weights,
    const float* multiplier, const float* bias, const float* activation, int columns, int channels_last, float* out);
int bnn_threshold(
    int index, const int* shape, const std::uint32_t* bits, std::size_t batch, const std::uint32_t* weights,
    const std::int32_t* thresholds, const std::uint32_t* flips, std::uint32_t* out);
}

namespace {

enum What : std::int32_t { kKernels, kConvolve, kThreshold, kPack, kProduct };

bool read(void* to, std::size_t bytes) { return bytes == 0 || std::fread(to, bytes, 1, stdin) == 1; }

template <typename T>
T number() {
    T found{};
    if (!read(&found, sizeof(found))) std::exit(2);
    return found;
}

std::vector<std::uint8_t> array(std::size_t bytes) {
    std::vector<std::uint8_t> found(bytes);
    if (!read(found.data(), bytes)) std::exit(2);
    return found;
}

void answer(std::int64_t bytes, const void* data) {
    std::fwrite(&bytes, sizeof(bytes), 1, stdout);
    if (bytes > 0) std::fwrite(data, static_cast<std::size_t>(bytes), 1, stdout);
    std::fflush(stdout);
}

void list_kernels() {
    std::string names;
    for (int i = 0; bnn_kernel_name(i) != nullptr; ++i)
        names += std::string(names.empty() ? "" : " ") + bnn_kernel_name(i) + (bnn_kernel_usable(i) ? "" : "-");
    answer(static_cast<std::int64_t>(names.size()), names.data());
}

void call(std::int32_t what) {
    const auto kernel = number<std::int32_t>(), count = number<std::int32_t>();
    const auto shape = array(static_cast<std::size_t>(count) * 4);
    const auto* sizes = reinterpret_cast<const int*>(shape.data());
    const auto rows = static_cast<std::size_t>(number<std::int64_t>());
    std::vector<std::uint8_t> out(static_cast<std::size_t>(number<std::int64_t>()));
    std::vector<std::uint8_t> given[5];
    for (auto& one : given) one = array(static_cast<std::size_t>(number<std::int64_t>()));
    const auto words = [&](int i) { return reinterpret_cast<const std::uint32_t*>(given[i].data()); };
    const auto floats = [&](int i) { return reinterpret_cast<const float*>(given[i].data()); };
    auto* bits = reinterpret_cast<std::uint32_t*>(out.data());
    int done = 1;
    if (what == kPack)
        bnn_pack(floats(0), floats(1), sizes[1], sizes[0], rows, bits);
    else if (what == kConvolve || what == kProduct)
        done = bnn_convolve(
            kernel, sizes, words(0), rows, words(1), floats(2), floats(3), floats(4),
            static_cast<int>(given[4].size() / 12), what == kProduct, reinterpret_cast<float*>(out.data()));
    else
        done = bnn_threshold(
            kernel, sizes, words(0), rows, words(1), reinterpret_cast<const std::int32_t*>(given[2].data()), words(3), bits);
    answer(done != 0 ? static_cast<std::int64_t>(out.size()) : -1, out.data());
}

}  // namespace

int main() {
    std::int32_t what = 0;
    while (std::fread(&what, sizeof(what), 1, stdin) == 1) {
        if (what == kKernels)
            list_kernels();
        else
            call(what);
    }
    return 0;
}
