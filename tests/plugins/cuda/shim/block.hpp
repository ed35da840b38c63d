// A block of GPU threads, each a fibre: they go on in a random order from one operation of a warp to the next.
#pragma once

#include <boost/context/fiber.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shared.hpp"

namespace shim {

constexpr int kLanes = 32;

// What all lanes of a warp do together, once all of them have come to it. `operands` are those of each lane.
struct Together {
    const char* name;
    void (*compute)(int first_thread, void* const* operands);  // none for a barrier, which the whole block waits for
};

struct Dice {
    std::uint64_t state;
    std::uint32_t below(std::uint32_t limit);
};

// Stacks of the fibres of one worker, with a page between that cannot be touched.
class Stacks {
  public:
    explicit Stacks(int threads);
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    static constexpr std::size_t kBytes = 256 * 1024;
    int threads() const { return static_cast<int>(bytes_ / kBytes); }
    char* top(int thread) const { return memory_ + (static_cast<std::size_t>(thread) + 1) * kBytes; }

  private:
    std::size_t bytes_;
    char* memory_;
};

struct Copy {
    std::uint32_t address;
    const void* from;
    int bytes;
    bool is_there;
};

struct Thread {
    boost::context::fiber own, scheduler;
    const Together* at;  // what it waits at
    void* operands;
    bool has_left;
    std::vector<Copy> copies;              // that nothing has waited for
    std::vector<std::size_t> group_ends;  // of those that are committed, in `copies`
};

struct Kernel {
    void (*call)(void (*entry)(), const void* arguments);  // knows the struct of the arguments
    void (*entry)();
    const void* arguments;
};

class Block {
  public:
    Block(const Kernel& kernel, const Stacks& stacks, int threads, std::uint32_t shared_bytes);
    // To the end, or throws Fault. `number` is that of the block; the same seed gives the same order.
    void run(const int (&index)[3], int number, std::uint64_t seed);
    // Lets go of fibres that have not come to their end. The one that `was_running` cannot be gone on with.
    void abandon(bool was_running);

    // Of the thread that runs now.
    void arrive(const Together& what, void* operands);
    int thread() const { return running_; }
    int index(int axis) const { return index_[axis]; }
    // Of the thread among all of the launch, from 1.
    std::uint32_t number() const { return first_number_ + static_cast<std::uint32_t>(running_); }
    Thread& own() { return threads_[static_cast<std::size_t>(running_)]; }
    Shared& shared() { return shared_; }

  private:
    void start(int thread);
    void run_lanes(int warp);
    void meet(int warp);
    void pass_barrier();

    Kernel kernel_;
    const Stacks& stacks_;
    std::uint32_t shared_bytes_;
    int index_[3] = {0, 0, 0}, running_ = 0;
    std::uint32_t first_number_ = 1;
    Dice dice_{0};
    Shared shared_;
    std::vector<Thread> threads_;
    std::vector<int> runnable_;  // warps
    int waiting_warps_ = 0, left_warps_ = 0;
    std::unique_ptr<std::string> fault_;
};

// The block whose fibre this worker runs.
Block& current();
void set_current(Block* block);

}  // namespace shim
