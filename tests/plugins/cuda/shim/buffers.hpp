// Global memory of a launch: buffers with guard zones at both sides, and who wrote each byte of the output.
#pragma once

#include <cstddef>
#include <string>

namespace shim {

// Pages beside it cannot be touched, so that no access that goes astray meets another buffer. Kernels cannot write inputs.
enum class Use { kOutput, kInput, kPartlyWritten };  // an output is written to its last byte
void* allocate_buffer(std::size_t bytes, Use use);
void free_buffer(void* start);

// Every load and store of a kernel: the compiler reports plain ones (traced.cpp), operations report theirs. They throw
// Fault where the bytes are not within one buffer, where an input is written, and where a byte of the output is written by
// two threads, or read by one that has not written it: nothing orders threads of different blocks, and those of one have
// shared memory to exchange what they know. A plain access to what is no buffer, as the stack, is none
// of theirs.
void note_plain(const void* at, std::size_t bytes, bool is_write);
void note_wide(const char* what, const void* at, std::size_t bytes, bool is_write);

// What is wrong after a launch, or nothing: bytes of the output that no thread wrote.
std::string what_is_unwritten();
// Where an address lies, in words.
std::string place_of(const void* at);

}  // namespace shim
