// A launch: all blocks of a grid in a random order, some at once. What Python calls.
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "block.hpp"
#include "buffers.hpp"
#include "fault.hpp"
#include "undefined.hpp"

namespace shim {
namespace {

struct Launch {
    Kernel kernel;
    int grid[3], threads;
    std::uint32_t shared_bytes;
    std::uint64_t seed;
};

// Where a worker goes on when its kernel touches memory that it must not, or does what is undefined.
thread_local sigjmp_buf landing;
thread_local bool is_in_kernel = false;
thread_local const void* touched = nullptr;
thread_local std::string* undefined = nullptr;  // what was, or nothing where memory was touched

struct sigaction before_segv, before_bus;

void on_signal(int number, siginfo_t* info, void*) {
    if (!is_in_kernel) {  // not ours: it happens again, and whoever was there before sees it
        sigaction(number, number == SIGSEGV ? &before_segv : &before_bus, nullptr);
        return;
    }
    touched = info->si_addr;
    siglongjmp(landing, 1);
}

// While it lives, faults of memory are a launch's.
class Signals {
  public:
    Signals() {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before_segv);
        sigaction(SIGBUS, &action, &before_bus);
    }
    ~Signals() {
        sigaction(SIGSEGV, &before_segv, nullptr);
        sigaction(SIGBUS, &before_bus, nullptr);
    }
};

// A stack for the handler: that of a fibre may be what ran over.
class SignalStack {
  public:
    SignalStack() : memory_(64 * 1024) {
        stack_t own{};
        own.ss_sp = memory_.data(), own.ss_size = memory_.size();
        sigaltstack(&own, &before_);
    }
    ~SignalStack() { sigaltstack(&before_, nullptr); }

  private:
    std::vector<char> memory_;
    stack_t before_{};
};

std::string message_of_landing(int thread) {
    if (undefined != nullptr) {
        const std::unique_ptr<std::string> message(std::exchange(undefined, nullptr));
        return *message;
    }
    return "thread " + std::to_string(thread) + " touches global memory at " + place_of(touched) + ": out of bounds";
}

void run_block(Block& block, const Launch& launch, int number) {
    const int x = launch.grid[0], y = launch.grid[1];
    const int index[3] = {number % x, number / x % y, number / x / y};
    if (sigsetjmp(landing, 1) != 0) {
        is_in_kernel = false;
        block.abandon(true);
        throw Fault{message_of_landing(block.thread())};
    }
    is_in_kernel = true;
    try {
        block.run(index, number, launch.seed * 1000003 + static_cast<std::uint64_t>(number));
    } catch (...) {
        is_in_kernel = false;
        throw;
    }
    is_in_kernel = false;
}

struct Work {
    explicit Work(const Launch& all) : launch(all) {}

    const Launch& launch;
    std::vector<int> order;  // of blocks
    std::atomic<std::size_t> next{0};
    std::mutex lock;
    std::string fault;  // the first that was found
    std::atomic<bool> is_over{false};
};

void run_worker(Work& work, const Stacks& stacks) {
    const SignalStack signal_stack;
    const Launch& launch = work.launch;
    Block block(launch.kernel, stacks, launch.threads, launch.shared_bytes);
    set_current(&block);
    try {
        for (std::size_t i = work.next++; i < work.order.size() && !work.is_over; i = work.next++)
            run_block(block, launch, work.order[i]);
    } catch (const Fault& fault) {
        const std::lock_guard<std::mutex> held(work.lock);
        if (!work.is_over.exchange(true))
            work.fault = "block (" + std::to_string(block.index(0)) + ", " + std::to_string(block.index(1)) + ", " +
                         std::to_string(block.index(2)) + "): " + fault.message;
    }
    block.abandon(false);
    set_current(nullptr);
}

// Stacks of a worker, kept for the next launch: to map and to guard them takes as long as a small launch.
const Stacks& stacks_of(std::size_t worker, int threads) {
    static std::vector<std::unique_ptr<Stacks>> kept;
    if (kept.size() <= worker) kept.resize(worker + 1);
    if (!kept[worker] || kept[worker]->threads() < threads) kept[worker] = std::make_unique<Stacks>(threads);
    return *kept[worker];
}

std::string run_grid(const Launch& launch, int workers) {
    Work work(launch);
    work.order.resize(static_cast<std::size_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
    std::iota(work.order.begin(), work.order.end(), 0);
    Dice dice{launch.seed};
    for (std::size_t i = work.order.size(); i > 1; --i)
        std::swap(work.order[i - 1], work.order[dice.below(static_cast<std::uint32_t>(i))]);
    const std::size_t count = std::min(static_cast<std::size_t>(workers), work.order.size());
    const Signals signals;
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < count; ++i)
        others.emplace_back(run_worker, std::ref(work), std::cref(stacks_of(i, launch.threads)));
    run_worker(work, stacks_of(0, launch.threads));
    for (std::thread& other : others) other.join();
    return work.fault.empty() ? what_is_unwritten() : work.fault;
}

std::mutex one_launch;  // the handlers and the buffers are of the process

}  // namespace

void stop_block(const std::string& message) {
    undefined = new std::string(message);
    siglongjmp(landing, 1);
}

}  // namespace shim

extern "C" {

// Returns 0, or 1 with a message. `grid`: blocks along x, y, z.
int shim_run(
    void (*call)(void (*)(), const void*), void (*entry)(), const void* arguments, const int* grid, int threads,
    std::uint32_t shared_bytes, std::uint64_t seed, int workers, char* message, std::size_t capacity) {
    const std::lock_guard<std::mutex> held(shim::one_launch);
    std::string fault;
    if (threads < 1 || threads > 1024 || threads % shim::kLanes != 0) {
        fault = "a block of " + std::to_string(threads) + " threads is no number of whole warps";
    } else {
        const shim::Launch launch{{call, entry, arguments}, {grid[0], grid[1], grid[2]}, threads, shared_bytes, seed};
        fault = shim::run_grid(launch, workers);
    }
    std::strncpy(message, fault.c_str(), capacity - 1);
    message[capacity - 1] = 0;
    return fault.empty() ? 0 : 1;
}

void* shim_allocate(std::size_t bytes, int use) { return shim::allocate_buffer(bytes, static_cast<shim::Use>(use)); }
void shim_free(void* start) { shim::free_buffer(start); }
}
