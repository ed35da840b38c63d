// PTX operations on the host: what ptx.cuh offers to kernels, for a processor. Each operation either does what PTX says
// of it or stops the run with a message, so that a kernel which is right by luck is found wrong here.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

#ifndef BITSERVE_SM
#error "BITSERVE_SM says whose instructions are meant: 80 or 90"
#endif

namespace ptx {

struct alignas(16) Words {
    std::uint32_t w[4];
};

}  // namespace ptx

namespace shim {

// Of the thread that runs now; see the files of the same names.
int thread();
int block_index(int axis);
std::uint32_t shared_base();
void mma(int* sums, const std::uint32_t* a, const std::uint32_t* b, bool is_and);
void load_matrices(std::uint32_t* registers, std::uint32_t address);
std::uint32_t ballot(bool own);
std::uint32_t shuffle_xor(std::uint32_t value, int mask);
void barrier();
void copy_async(std::uint32_t address, const void* from, int bytes, bool is_there);
void commit();
void wait_groups(int left);
void load_shared(std::uint32_t address, std::uint32_t* words, int count);
void store_shared(std::uint32_t address, const std::uint32_t* words, int count);
void load_global(const void* from, std::uint32_t* words, int count);
void store_global(void* to, const std::uint32_t* words, int count);
std::uint16_t to_half(float value);
float from_half(std::uint16_t bits);

}  // namespace shim

namespace ptx {

constexpr bool is_and = BITSERVE_SM >= 90;

inline int thread() { return shim::thread(); }
inline int block_x() { return shim::block_index(0); }
inline int block_y() { return shim::block_index(1); }
inline int block_z() { return shim::block_index(2); }

inline std::uint32_t shared_base() { return shim::shared_base(); }

inline void mma(int (&sums)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    shim::mma(sums, a, b, is_and);
}

inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) { shim::load_matrices(r, address); }

template <int bytes>
inline void copy_async(std::uint32_t address, const void* from, bool is_there) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    shim::copy_async(address, from, bytes, is_there);
}

inline void commit() { shim::commit(); }

template <int n>
inline void wait_groups() {
    static_assert(n >= 0, "cp.async.wait_group leaves no fewer than 0 groups");
    shim::wait_groups(n);
}

inline void barrier() { shim::barrier(); }
inline std::uint32_t ballot(bool own) { return shim::ballot(own); }
inline std::uint32_t shuffle_xor(std::uint32_t value, int mask) { return shim::shuffle_xor(value, mask); }

inline std::uint32_t load_shared(std::uint32_t address) {
    std::uint32_t word;
    shim::load_shared(address, &word, 1);
    return word;
}

inline void store_shared(std::uint32_t address, std::uint32_t value) { shim::store_shared(address, &value, 1); }

inline Words load_shared4(std::uint32_t address) {
    Words words;
    shim::load_shared(address, words.w, 4);
    return words;
}

inline void store_shared4(std::uint32_t address, Words words) { shim::store_shared(address, words.w, 4); }

inline Words load_global4(const void* from) {
    Words words;
    shim::load_global(from, words.w, 4);
    return words;
}

inline void store_global4(void* to, Words words) { shim::store_global(to, words.w, 4); }

// Each rounded once: the build says -ffp-contract=off.
inline float multiply(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline std::uint16_t to_half(float value) { return shim::to_half(value); }
inline float from_half(std::uint16_t bits) { return shim::from_half(bits); }
inline int popcount(std::uint32_t word) { return __builtin_popcount(word); }

}  // namespace ptx
