// Shared memory of a block with a shadow: who wrote and who read each word since the last barrier.
#pragma once

#include <cstdint>
#include <vector>

namespace shim {

// Two threads may touch a word, one of them writing, only with a barrier between: neither a shuffle nor another operation
// of a warp orders memory by PTX's model. A word that a copy is on its way to belongs to nobody.
class Shared {
  public:
    // Filled with `poison`; `base` is its address as kernels see it.
    void reset(std::uint32_t base, std::uint32_t bytes, std::uint32_t poison);
    std::uint32_t base() const { return base_; }
    // A barrier: what comes after it is ordered behind what came before.
    void next_epoch() { ++epoch_; }

    // Of `count` words, aligned to their size; throw Fault.
    void read(int thread, std::uint32_t address, std::uint32_t* words, int count);
    void write(int thread, std::uint32_t address, const std::uint32_t* words, int count);
    // A copy of `count` words begins, and has come to its end. All of the time between it may write at any moment; an
    // access then is a fault whatever it would have found, so the moment itself need not be drawn.
    void begin_copy(int thread, std::uint32_t address, int count);
    void end_copy(int thread, std::uint32_t address, const std::uint32_t* words, int count);

  private:
    struct Shadow {
        std::uint32_t write_epoch, read_epoch;     // 0: never
        std::int16_t writer, reader, other_reader;  // -1: none; the readers are different
        bool is_initialized, is_in_flight;
    };

    std::size_t index(const char* what, int thread, std::uint32_t address, int count) const;
    void note_read(int thread, std::size_t at);
    void note_write(int thread, std::size_t at);
    std::uint32_t offset(std::size_t at) const { return 4 * static_cast<std::uint32_t>(at); }

    std::uint32_t base_ = 0, epoch_ = 1, poison_ = 0;
    std::vector<std::uint32_t> words_;
    std::vector<Shadow> shadows_;
};

}  // namespace shim
