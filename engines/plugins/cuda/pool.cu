// The largest value of each channel in a window: bits [rows, height, width, words] -> bits [rows, height', width', words].
//
// A set bit is -1, so the largest is -1 where all are: AND. Places outside count as nothing.
#include "ptx.cuh"

namespace {

constexpr int THREADS = 128;

struct Arguments {
    const uint32_t* bits;
    uint32_t* out;
    int32_t rows, row_step, height, width, words, out_height, out_width;
    int32_t kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width;
    int32_t pad_top, pad_left;
};

template <int words>
__device__ __forceinline__ ptx::Words read(const uint32_t* from) {
    if constexpr (words == 4) return ptx::load_global4(from);
    return ptx::Words{{*from, 0, 0, 0}};
}

// A thread has so many words of one place, in one row after the other.
template <int words>
__device__ __forceinline__ void pool(const Arguments& own) {
    const int parts = own.words / words, unit = ptx::block_x() * THREADS + ptx::thread();
    const int place = unit / parts, word = (unit - place * parts) * words;
    const int out_y = place / own.out_width, out_x = place - out_y * own.out_width;
    if (out_y >= own.out_height) return;
    const int top = out_y * own.stride_height - own.pad_top, left = out_x * own.stride_width - own.pad_left;
    for (int row = ptx::block_z(); row < own.rows; row += own.row_step) {
        ptx::Words all{{~0u, ~0u, ~0u, ~0u}};
        for (int ky = 0; ky < own.kernel_height; ++ky) {
            const int y = top + ky * own.dilation_height;
            if (y < 0 || y >= own.height) continue;
            for (int kx = 0; kx < own.kernel_width; ++kx) {
                const int x = left + kx * own.dilation_width;
                if (x < 0 || x >= own.width) continue;
                const int64_t pixel = (static_cast<int64_t>(row) * own.height + y) * own.width + x;
                const ptx::Words seen = read<words>(own.bits + pixel * own.words + word);
                for (int i = 0; i < words; ++i) all.w[i] &= seen.w[i];
            }
        }
        uint32_t* to = own.out + (static_cast<int64_t>(row) * own.out_height * own.out_width + place) * own.words + word;
        if constexpr (words == 4)
            ptx::store_global4(to, all);
        else
            *to = all.w[0];
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) pool_16(const Arguments arguments) { pool<4>(arguments); }
extern "C" __global__ void __launch_bounds__(THREADS) pool_4(const Arguments arguments) { pool<1>(arguments); }
