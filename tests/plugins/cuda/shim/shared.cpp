#include "shared.hpp"

#include <algorithm>

#include "fault.hpp"

namespace shim {

void Shared::reset(std::uint32_t base, std::uint32_t bytes, std::uint32_t poison) {
    base_ = base, epoch_ = 1, poison_ = poison;
    words_.assign((bytes + 3) / 4, poison);
    shadows_.assign(words_.size(), Shadow{0, 0, -1, -1, -1, false, false});
}

std::size_t Shared::index(const char* what, int thread, std::uint32_t address, int count) const {
    const std::uint32_t size = 4 * static_cast<std::uint32_t>(count);
    if (address % size != 0)
        fail("thread %d %s %u bytes of shared memory at address %u: misaligned", thread, what, size, address);
    const std::uint64_t end = base_ + 4 * static_cast<std::uint64_t>(words_.size());
    if (address < base_ || address + static_cast<std::uint64_t>(size) > end)
        fail("thread %d %s %u bytes at byte %lld of shared memory: out of bounds, it has %zu bytes", thread, what, size,
             static_cast<long long>(address) - base_, 4 * words_.size());
    return (address - base_) / 4;
}

void Shared::note_read(int thread, std::size_t at) {
    Shadow& word = shadows_[at];
    if (word.is_in_flight)
        fail("thread %d reads byte %u of shared memory while a copy of thread %d is in flight: no wait covers it", thread,
             offset(at), word.writer);
    if (!word.is_initialized) fail("thread %d reads byte %u of shared memory: uninitialized", thread, offset(at));
    if (word.write_epoch == epoch_ && word.writer != thread)
        fail("race at byte %u of shared memory: thread %d wrote and thread %d reads, no barrier between", offset(at),
             word.writer, thread);
    if (word.read_epoch != epoch_) {
        word.read_epoch = epoch_, word.reader = static_cast<std::int16_t>(thread), word.other_reader = -1;
    } else if (word.reader != thread) {
        word.other_reader = static_cast<std::int16_t>(thread);
    }
}

void Shared::note_write(int thread, std::size_t at) {
    Shadow& word = shadows_[at];
    if (word.is_in_flight)
        fail("thread %d writes byte %u of shared memory while a copy of thread %d is in flight: no wait covers it", thread,
             offset(at), word.writer);
    if (word.write_epoch == epoch_ && word.writer != thread)
        fail("race at byte %u of shared memory: threads %d and %d write, no barrier between", offset(at), word.writer,
             thread);
    const int reader = word.reader != thread ? word.reader : word.other_reader;
    if (word.read_epoch == epoch_ && reader != -1)
        fail("race at byte %u of shared memory: thread %d read and thread %d writes, no barrier between", offset(at), reader,
             thread);
    word.write_epoch = epoch_, word.writer = static_cast<std::int16_t>(thread), word.is_initialized = true;
}

void Shared::read(int thread, std::uint32_t address, std::uint32_t* words, int count) {
    const std::size_t first = index("reads", thread, address, count);
    for (int i = 0; i < count; ++i) note_read(thread, first + i);
    std::copy_n(words_.begin() + static_cast<std::ptrdiff_t>(first), count, words);
}

void Shared::write(int thread, std::uint32_t address, const std::uint32_t* words, int count) {
    const std::size_t first = index("writes", thread, address, count);
    for (int i = 0; i < count; ++i) note_write(thread, first + i);
    std::copy_n(words, count, words_.begin() + static_cast<std::ptrdiff_t>(first));
}

void Shared::begin_copy(int thread, std::uint32_t address, int count) {
    const std::size_t first = index("copies", thread, address, count);
    for (int i = 0; i < count; ++i) {
        note_write(thread, first + i);
        shadows_[first + i].is_in_flight = true;
        words_[first + i] = poison_;
    }
}

void Shared::end_copy(int thread, std::uint32_t address, const std::uint32_t* words, int count) {
    const std::size_t first = index("copies", thread, address, count);
    for (int i = 0; i < count; ++i) {
        shadows_[first + i].is_in_flight = false;
        note_write(thread, first + i);
    }
    std::copy_n(words, count, words_.begin() + static_cast<std::ptrdiff_t>(first));
}

}  // namespace shim
