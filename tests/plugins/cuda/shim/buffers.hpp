// Global memory of a launch: buffers with guard zones at both sides.
#pragma once

#include <cstddef>
#include <string>

namespace shim {

// An access beyond a buffer that goes through this interface is checked here; one through a plain pointer meets pages
// that cannot be touched, or bytes whose change is seen afterwards.
// Aligned to 16 bytes, as the least that kernels may count on; pressed against the guard behind it, or before it.
void* allocate_buffer(std::size_t bytes, bool at_end);
// Of inputs: from now on kernels cannot write it.
void seal_buffer(void* start);
void free_buffer(void* start);

// Throws Fault where the bytes are not within one buffer, or are misaligned.
void check_global(const char* what, const void* at, std::size_t bytes);
// What is wrong with the bytes around the buffers, or nothing.
std::string damage_around_buffers();
bool is_in_buffer(const void* at, std::size_t bytes = 1);
// Where an address lies, in words.
std::string place_of(const void* at);

}  // namespace shim
