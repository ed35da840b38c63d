// What C++ leaves undefined, where a kernel does it: the compiler's checks (-fsanitize=undefined) call these functions.
#include "undefined.hpp"

#include "block.hpp"
#include "fault.hpp"

namespace shim {
namespace {

// Each check hands over a struct that starts with this.
struct SourcePlace {
    const char* file;
    std::uint32_t line, column;
};

[[noreturn]] void stop(const char* what, const void* data) {
    const auto& place = *static_cast<const SourcePlace*>(data);
    const std::string file = place.file == nullptr ? "?" : place.file;
    // the compiler takes it that nothing is thrown from here
    stop_block("thread " + std::to_string(current().thread()) + ": " + what + " at " +
               file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(place.line));
}

}  // namespace
}  // namespace shim

#define CHECK(name, what)                                                                                    \
    extern "C" __attribute__((visibility("hidden"), noreturn)) void __ubsan_handle_##name##_abort(void* data) { \
        shim::stop(what, data);                                                                              \
    }

CHECK(type_mismatch_v1, "a misaligned or null address")
CHECK(pointer_overflow, "a pointer that overflows")
CHECK(add_overflow, "a sum that overflows")
CHECK(sub_overflow, "a difference that overflows")
CHECK(mul_overflow, "a product that overflows")
CHECK(negate_overflow, "a negation that overflows")
CHECK(divrem_overflow, "a division by zero")
CHECK(shift_out_of_bounds, "a shift by too much")
CHECK(out_of_bounds, "an index out of bounds")
CHECK(load_invalid_value, "a value that its type does not have")
CHECK(builtin_unreachable, "a place that is never reached")
