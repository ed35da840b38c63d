#include "block.hpp"

#include <sys/mman.h>

#include <numeric>

#include "fault.hpp"
#include "shim.hpp"

namespace shim {
namespace {

thread_local Block* running_block = nullptr;

const Together kBarrier{"a barrier", nullptr};

// A stack of `Stacks`, as fibres take it: nothing to free.
struct Kept {
    char* top;
    boost::context::stack_context allocate() const {
        boost::context::stack_context stack;
        stack.sp = top, stack.size = Stacks::kBytes - 4096;
        return stack;
    }
    void deallocate(boost::context::stack_context&) const {}
};

}  // namespace

Block& current() { return *running_block; }
void set_current(Block* block) { running_block = block; }

int thread() { return current().thread(); }
int block_index(int axis) { return current().index(axis); }
void barrier() { current().arrive(kBarrier, nullptr); }

std::uint32_t Dice::below(std::uint32_t limit) {
    state += 0x9E3779B97F4A7C15u;  // splitmix64: every seed is a good one
    std::uint64_t mixed = state;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return static_cast<std::uint32_t>((mixed ^ (mixed >> 31)) >> 33) % limit;
}

Stacks::Stacks(int threads) : bytes_(static_cast<std::size_t>(threads) * kBytes) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Fault{"no memory for stacks"};
    memory_ = static_cast<char*>(memory);
    for (int i = 0; i < threads; ++i) mprotect(memory_ + static_cast<std::size_t>(i) * kBytes, 4096, PROT_NONE);
}

Stacks::~Stacks() { munmap(memory_, bytes_); }

Block::Block(const Kernel& kernel, const Stacks& stacks, int threads, std::uint32_t shared_bytes)
    : kernel_(kernel), stacks_(stacks), shared_bytes_(shared_bytes), threads_(static_cast<std::size_t>(threads)) {}

void Block::start(int thread) {
    Thread& own = threads_[static_cast<std::size_t>(thread)];
    own.at = nullptr, own.has_left = false;
    own.copies.clear(), own.group_ends.clear();
    own.own = boost::context::fiber(
        std::allocator_arg, Kept{stacks_.top(thread)}, [this, &own](boost::context::fiber&& scheduler) {
            own.scheduler = std::move(scheduler);
            try {
                kernel_.call(kernel_.entry, kernel_.arguments);
                if (!own.copies.empty()) fail("thread %d leaves with copies in flight: no wait covers them", running_);
            } catch (const Fault& fault) {
                fault_ = std::make_unique<std::string>(fault.message);
            }
            own.has_left = true;
            return std::move(own.scheduler);
        });
}

void Block::run(const int (&index)[3], int number, std::uint64_t seed) {
    std::copy(index, index + 3, index_);
    first_number_ = 1 + static_cast<std::uint32_t>(number) * static_cast<std::uint32_t>(threads_.size());
    dice_ = Dice{seed};
    shared_.reset(128 * dice_.below(64), shared_bytes_, 0xDEAD0000u + dice_.below(1u << 16));
    for (std::size_t i = 0; i < threads_.size(); ++i) start(static_cast<int>(i));
    runnable_.resize(threads_.size() / kLanes);
    std::iota(runnable_.begin(), runnable_.end(), 0);
    waiting_warps_ = left_warps_ = 0;
    while (!runnable_.empty()) {
        const std::uint32_t chosen = dice_.below(static_cast<std::uint32_t>(runnable_.size()));
        const int warp = runnable_[chosen];
        run_lanes(warp);
        runnable_[chosen] = runnable_.back();
        runnable_.pop_back();
        meet(warp);
        if (runnable_.empty() && waiting_warps_ > 0) pass_barrier();
    }
}

// Until each of them waits or has left.
void Block::run_lanes(int warp) {
    const std::uint32_t first = dice_.below(kLanes), step = 2 * dice_.below(kLanes / 2) + 1;
    for (std::uint32_t i = 0; i < kLanes; ++i) {
        running_ = warp * kLanes + static_cast<int>((first + i * step) % kLanes);
        Thread& lane = threads_[static_cast<std::size_t>(running_)];
        lane.own = std::move(lane.own).resume();
        if (fault_) throw Fault{*fault_};
    }
}

void Block::arrive(const Together& what, void* operands) {
    Thread& lane = own();
    lane.at = &what, lane.operands = operands;
    lane.scheduler = std::move(lane.scheduler).resume();
}

// All lanes have come to the same operation, or have left: else they have diverged where PTX forbids it.
void Block::meet(int warp) {
    const int first = warp * kLanes;
    const auto doing = [&](int thread) {
        const Thread& lane = threads_[static_cast<std::size_t>(thread)];
        return lane.has_left ? nullptr : lane.at;
    };
    const auto name = [](const Together* what) { return what == nullptr ? "its end" : what->name; };
    const Together* what = doing(first);
    void* operands[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        if (doing(first + i) != what)
            fail("warp %d diverges: thread %d came to %s and thread %d to %s", warp, first, name(what), first + i,
                 name(doing(first + i)));
        operands[i] = threads_[static_cast<std::size_t>(first + i)].operands;
    }
    if (what == nullptr) {
        ++left_warps_;
    } else if (what->compute == nullptr) {
        ++waiting_warps_;
    } else {
        what->compute(first, operands);
        runnable_.push_back(warp);
    }
}

void Block::pass_barrier() {
    if (left_warps_ > 0)
        fail("%d warps of a block wait at a barrier, and %d have left without it", waiting_warps_, left_warps_);
    shared_.next_epoch();
    runnable_.resize(threads_.size() / kLanes);
    std::iota(runnable_.begin(), runnable_.end(), 0);
    waiting_warps_ = 0;
}

void Block::abandon(bool was_running) {
    // a fibre ends by going on, which its way back to here, the scheduler's context, must never do: it is given away
    if (was_running) new boost::context::fiber(std::move(own().scheduler));
    for (Thread& thread : threads_) thread.own = {};
}

}  // namespace shim
