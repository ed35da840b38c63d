// The operations of the machine that kernels use, one function each, and nothing else: kernels are plain C++ over them.
// With BITSERVE_ON_HOST, "shim.hpp" (found by -I) defines the same functions for a processor, so that the very source
// of a kernel runs there.
//
// Shared memory is reached by 32-bit addresses only, as ldmatrix and cp.async take them.
#pragma once

#ifdef BITSERVE_ON_HOST
#include "shim.hpp"
#else

using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int32_t = int;
using int64_t = long long;
using uint64_t = unsigned long long;

namespace ptx {

// Hopper multiplies bits by AND; its XOR is a subroutine of two ANDs. From sm_100 on there is neither.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool is_and = true;
#define BITSERVE_POPCOUNT_OF "and"
#else
constexpr bool is_and = false;
#define BITSERVE_POPCOUNT_OF "xor"
#endif

struct alignas(16) Words {
    uint32_t w[4];
};

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int block_x() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int block_y() { return static_cast<int>(blockIdx.y); }
__device__ __forceinline__ int block_z() { return static_cast<int>(blockIdx.z); }

// Where the dynamic shared memory starts.
__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ __align__(128) unsigned char dynamic_memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_memory));
}

// sums += popcounts of (16 rows x 256 bits) with (256 bits x 8 columns). Lane 4 g + t has of a: words t and t + 4 of
// rows g and g + 8; of b: words t and t + 4 of column g; of sums: columns 2 t and 2 t + 1 of rows g and g + 8.
__device__ __forceinline__ void mma(int (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32." BITSERVE_POPCOUNT_OF
        ".popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 rows of 16 bytes. Lane 8 m + r gives the address of row r of matrix m; lane 4 g + t gets word t of
// row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Zeros where it is not there; `from` is not read then.
template <int bytes>
__device__ __forceinline__ void copy_async(uint32_t address, const void* from, bool is_there) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    const uint32_t size = is_there ? bytes : 0;
    if constexpr (bytes == 16)  // past the first cache, which would only be filled once more
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(bytes), "r"(size)
                     : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most the n newest groups are under way.
template <int n>
__device__ __forceinline__ void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

__device__ __forceinline__ void barrier() { asm volatile("bar.sync 0;" ::: "memory"); }

__device__ __forceinline__ uint32_t ballot(bool one) { return __ballot_sync(0xffffffffu, one); }

__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ Words load_shared4(uint32_t address) {
    Words v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ __forceinline__ void store_shared4(uint32_t address, Words v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]),
                 "r"(v.w[3])
                 : "memory");
}

__device__ __forceinline__ Words load_global4(const void* from) { return *static_cast<const Words*>(from); }

__device__ __forceinline__ void store_global4(void* to, Words v) { *static_cast<Words*>(to) = v; }

// Each rounded once, to the nearest even: a product and a sum are never contracted.
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }

__device__ __forceinline__ uint16_t to_half(float value) {
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ float from_half(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ int popcount(uint32_t word) { return __popc(word); }

}  // namespace ptx

#endif
