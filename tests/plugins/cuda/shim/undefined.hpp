#pragma once

#include <string>

namespace shim {

// Ends the block that this worker runs, from where nothing may be thrown.
[[noreturn]] void stop_block(const std::string& message);

}  // namespace shim
