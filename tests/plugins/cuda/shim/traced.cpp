// Plain loads and stores of kernels: the compiler, which is told to look for races of threads (-fsanitize=thread), calls
// these functions before each of them.
#include <cstddef>
#include <cstdint>
#include <string>

#include "buffers.hpp"
#include "fault.hpp"
#include "undefined.hpp"

namespace shim {
namespace {

void trace(const void* at, std::size_t bytes, bool is_write) {
    std::string message;
    try {
        note_plain(at, bytes, is_write);
    } catch (const Fault& fault) {
        message = fault.message;
    }
    if (!message.empty()) stop_block(message);  // the compiler takes it that nothing is thrown from here
}

}  // namespace
}  // namespace shim

#define HIDDEN extern "C" __attribute__((visibility("hidden")))
#define TRACED(bytes)                                                                        \
    HIDDEN void __tsan_read##bytes(void* at) { shim::trace(at, bytes, false); }              \
    HIDDEN void __tsan_write##bytes(void* at) { shim::trace(at, bytes, true); }              \
    HIDDEN void __tsan_unaligned_read##bytes(void* at) { shim::trace(at, bytes, false); }    \
    HIDDEN void __tsan_unaligned_write##bytes(void* at) { shim::trace(at, bytes, true); }

TRACED(1)
TRACED(2)
TRACED(4)
TRACED(8)
TRACED(16)

HIDDEN void __tsan_read_range(void* at, std::size_t bytes) { shim::trace(at, bytes, false); }
HIDDEN void __tsan_write_range(void* at, std::size_t bytes) { shim::trace(at, bytes, true); }
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}

// Counters that a test puts into kernels count on.
HIDDEN std::int64_t __tsan_atomic64_fetch_add(volatile std::int64_t* at, std::int64_t value, int) {
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
HIDDEN std::int64_t __tsan_atomic64_exchange(volatile std::int64_t* at, std::int64_t value, int) {
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);
}
