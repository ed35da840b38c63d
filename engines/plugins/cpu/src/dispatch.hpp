// Which kernel runs, and how often each has run.
#pragma once

#include <cstdint>

#include "kernel.hpp"

namespace bnn {

// The fastest that this processor has, or the one that was pinned.
const Kernel& chosen();
// All that were compiled, the fastest first; nothing after the last.
const Kernel* const* compiled();
// Pins one by its name, or none (""); false where this processor has no such kernel.
bool pin(const char* name);
void note_run(const Kernel& kernel);
std::uint64_t runs_of(const Kernel& kernel);

}  // namespace bnn
