#include "buffers.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fault.hpp"
#include "shim.hpp"

namespace shim {
namespace {

constexpr std::size_t kPage = 4096, kGuard = 256 * kPage;  // a stray index reaches far
constexpr unsigned char kAround = 0xA5, kUnwritten = 0xCD;

struct Buffer {
    unsigned char *mapping, *start;
    std::size_t bytes, inner_bytes;  // of the pages that can be touched

    unsigned char* inner() const { return mapping + kGuard; }
};

std::vector<Buffer> buffers;  // changed between launches only

void unmap(const Buffer& buffer) { munmap(buffer.mapping, buffer.inner_bytes + 2 * kGuard); }

}  // namespace

void* allocate_buffer(std::size_t bytes, bool at_end) {
    const std::size_t inner = std::max(kPage, (bytes + kPage - 1) / kPage * kPage);
    void* mapping = mmap(nullptr, inner + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    Buffer buffer{static_cast<unsigned char*>(mapping), nullptr, bytes, inner};
    mprotect(buffer.inner(), inner, PROT_READ | PROT_WRITE);
    std::memset(buffer.inner(), kAround, inner);
    buffer.start = buffer.inner() + (at_end ? (inner - bytes) / 16 * 16 : 0);
    std::memset(buffer.start, kUnwritten, bytes);
    buffers.push_back(buffer);
    return buffer.start;
}

void seal_buffer(void* start) {
    for (const Buffer& buffer : buffers)
        if (buffer.start == start) mprotect(buffer.inner(), buffer.inner_bytes, PROT_READ);
}

void free_buffer(void* start) {
    const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const Buffer& b) { return b.start == start; });
    if (found == buffers.end()) return;
    unmap(*found);
    buffers.erase(found);
}

bool is_in_buffer(const void* at, std::size_t bytes) {
    const auto* first = static_cast<const unsigned char*>(at);
    return std::any_of(buffers.begin(), buffers.end(), [&](const Buffer& buffer) {
        return first >= buffer.start && first + bytes <= buffer.start + buffer.bytes;
    });
}

void check_global(const char* what, const void* at, std::size_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(at) % bytes != 0)
        fail("thread %d %s %zu bytes of global memory at %s: misaligned", thread(), what, bytes, place_of(at).c_str());
    if (!is_in_buffer(at, bytes))
        fail("thread %d %s %zu bytes of global memory at %s: out of bounds", thread(), what, bytes, place_of(at).c_str());
}

std::string damage_around_buffers() {
    for (const Buffer& buffer : buffers) {
        const unsigned char *end = buffer.start + buffer.bytes, *last = buffer.inner() + buffer.inner_bytes;
        for (const unsigned char* at = buffer.inner(); at < last; ++at) {
            if (at == buffer.start) at = end;
            if (at < last && *at != kAround) return "a store to global memory at " + place_of(at) + ": out of bounds";
        }
    }
    return "";
}

std::string place_of(const void* at) {
    const auto* address = static_cast<const unsigned char*>(at);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        const Buffer& buffer = buffers[i];
        if (address < buffer.mapping || address >= buffer.inner() + buffer.inner_bytes + kGuard) continue;
        return "byte " + std::to_string(address - buffer.start) + " of buffer " + std::to_string(i) + ", which has " +
               std::to_string(buffer.bytes);
    }
    return "an address of no buffer";
}

void load_global(const void* from, std::uint32_t* words, int count) {
    check_global("reads", from, 4 * static_cast<std::size_t>(count));
    std::memcpy(words, from, 4 * static_cast<std::size_t>(count));
}

void store_global(void* to, const std::uint32_t* words, int count) {
    check_global("writes", to, 4 * static_cast<std::size_t>(count));
    std::memcpy(to, words, 4 * static_cast<std::size_t>(count));
}

}  // namespace shim
