// What a kernel did wrong, in words.
#pragma once

#include <cstdio>
#include <string>

namespace shim {

struct Fault {
    std::string message;
};

template <typename... Values>
[[noreturn]] void fail(const char* format, Values... values) {
    char message[400];
    std::snprintf(message, sizeof(message), format, values...);
    throw Fault{message};
}

}  // namespace shim
