#include "buffers.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "block.hpp"
#include "fault.hpp"
#include "shim.hpp"

namespace shim {
namespace {

constexpr std::size_t kPage = 4096, kGuard = 256 * kPage;  // a stray index reaches far
constexpr std::size_t kUnit = 2;  // bytes, the least that a kernel writes

struct Buffer {
    unsigned char *mapping, *start;
    std::size_t bytes, inner_bytes;  // of the pages that can be touched
    Use use;
    std::unique_ptr<std::atomic<std::uint32_t>[]> owners;  // of each unit: the thread that wrote it, or 0

    unsigned char* inner() const { return mapping + kGuard; }
    bool has(const unsigned char* at) const { return at >= mapping && at < inner() + inner_bytes + kGuard; }
    bool has_within(const unsigned char* at, std::size_t count) const {
        return at >= start && at + count <= start + bytes;
    }
};

std::vector<Buffer> buffers;  // changed between launches only

Buffer* buffer_of(const void* at) {
    const auto* address = static_cast<const unsigned char*>(at);
    const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const Buffer& b) { return b.has(address); });
    return found == buffers.end() ? nullptr : &*found;
}

void own(Buffer& buffer, const void* at, std::size_t bytes, bool is_write) {
    const std::uint32_t writer = current().number();
    const std::size_t first = static_cast<std::size_t>(static_cast<const unsigned char*>(at) - buffer.start) / kUnit;
    for (std::size_t i = first; i < first + (bytes + kUnit - 1) / kUnit; ++i) {
        std::uint32_t before = is_write ? 0 : buffer.owners[i].load();
        if (is_write) buffer.owners[i].compare_exchange_strong(before, writer);
        if (before != writer && !(is_write && before == 0))
            fail("thread %d %s global memory at %s: %s", thread(), is_write ? "writes" : "reads", place_of(at).c_str(),
                 before == 0 ? "unwritten" : "another thread wrote it");
    }
}

void note(const char* what, Buffer& buffer, const void* at, std::size_t bytes, bool is_write) {
    if (reinterpret_cast<std::uintptr_t>(at) % bytes != 0)
        fail("thread %d %s %zu bytes of global memory at %s: misaligned", thread(), what, bytes, place_of(at).c_str());
    if (!buffer.has_within(static_cast<const unsigned char*>(at), bytes))
        fail("thread %d %s %zu bytes of global memory at %s: out of bounds", thread(), what, bytes, place_of(at).c_str());
    if (buffer.use == Use::kInput && is_write)
        fail("thread %d writes global memory at %s: an input", thread(), place_of(at).c_str());
    if (buffer.use != Use::kInput) own(buffer, at, bytes, is_write);
}

}  // namespace

void* allocate_buffer(std::size_t bytes, Use use) {
    const std::size_t inner = std::max(kPage, (bytes + kPage - 1) / kPage * kPage);
    void* mapping = mmap(nullptr, inner + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    Buffer buffer{static_cast<unsigned char*>(mapping), nullptr, bytes, inner, use, nullptr};
    mprotect(buffer.inner(), inner, PROT_READ | PROT_WRITE);
    buffer.start = buffer.inner() + (inner - bytes) / 16 * 16;  // as the least that kernels may count on
    std::memset(buffer.start, 0xCD, bytes);
    buffer.owners = std::make_unique<std::atomic<std::uint32_t>[]>((bytes + kUnit - 1) / kUnit);
    buffers.push_back(std::move(buffer));
    return buffers.back().start;
}

void free_buffer(void* start) {
    const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const Buffer& b) { return b.start == start; });
    if (found == buffers.end()) return;
    munmap(found->mapping, found->inner_bytes + 2 * kGuard);
    buffers.erase(found);
}

void note_plain(const void* at, std::size_t bytes, bool is_write) {
    Buffer* buffer = buffer_of(at);
    if (buffer != nullptr) note(is_write ? "writes" : "reads", *buffer, at, bytes, is_write);
}

void note_wide(const char* what, const void* at, std::size_t bytes, bool is_write) {
    Buffer* buffer = buffer_of(at);
    if (buffer == nullptr)
        fail("thread %d %s %zu bytes at %s: out of bounds", thread(), what, bytes, place_of(at).c_str());
    note(what, *buffer, at, bytes, is_write);
}

std::string what_is_unwritten() {
    for (const Buffer& buffer : buffers)
        for (std::size_t i = 0; buffer.use == Use::kOutput && i < (buffer.bytes + kUnit - 1) / kUnit; ++i)
            if (buffer.owners[i] == 0) return "no thread writes global memory at " + place_of(buffer.start + i * kUnit);
    return "";
}

std::string place_of(const void* at) {
    const Buffer* buffer = buffer_of(at);
    if (buffer == nullptr) return "an address of no buffer";
    return "byte " + std::to_string(static_cast<const unsigned char*>(at) - buffer->start) + " of buffer " +
           std::to_string(buffer - buffers.data()) + ", which has " + std::to_string(buffer->bytes);
}

void load_global(const void* from, std::uint32_t* words, int count) {
    note_wide("reads", from, 4 * static_cast<std::size_t>(count), false);
    std::memcpy(words, from, 4 * static_cast<std::size_t>(count));
}

void store_global(void* to, const std::uint32_t* words, int count) {
    note_wide("writes", to, 4 * static_cast<std::size_t>(count), true);
    std::memcpy(to, words, 4 * static_cast<std::size_t>(count));
}

}  // namespace shim
