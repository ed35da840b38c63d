// Operations of a whole warp, and those on shared memory, as PTX defines them.
#include <cstring>

#include "block.hpp"
#include "buffers.hpp"
#include "fault.hpp"
#include "shim.hpp"

namespace shim {
namespace {

struct Product {
    std::int32_t* sums;
    const std::uint32_t *a, *b;
};

// m16n8k256 of bits. Lane 4g + t has of A the words t and t + 4 of rows g and g + 8, of B the words t and t + 4 of column
// g, and of the sums columns 2t and 2t + 1 of rows g and g + 8.
template <bool is_and>
void compute_product(int, void* const* operands) {
    std::uint32_t a[16][8], b[8][8];
    for (int lane = 0; lane < kLanes; ++lane) {
        const Product& own = *static_cast<const Product*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = own.a[i];
        for (int i = 0; i < 2; ++i) b[g][t + 4 * i] = own.b[i];
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        std::int32_t* sums = static_cast<const Product*>(operands[lane])->sums;
        for (int i = 0; i < 4; ++i) {
            const std::uint32_t *row = a[lane / 4 + 8 * (i / 2)], *column = b[lane % 4 * 2 + i % 2];
            std::uint32_t count = 0;  // wraps around, as registers do
            for (int k = 0; k < 8; ++k)
                count += static_cast<std::uint32_t>(__builtin_popcount(is_and ? row[k] & column[k] : row[k] ^ column[k]));
            sums[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[i]) + count);
        }
    }
}

struct Matrices {
    std::uint32_t* registers;
    std::uint32_t address;  // of the row that this lane names
};

// ldmatrix .x4 of 8 x 8 halves: lane 8m + r names row r of matrix m; of that row, lane 4r + j gets word j as register m.
void compute_matrices(int first_thread, void* const* operands) {
    for (int named = 0; named < kLanes; ++named) {
        const std::uint32_t address = static_cast<const Matrices*>(operands[named])->address;
        if (address % 16 != 0)
            fail("thread %d names a row of ldmatrix at address %u: misaligned", first_thread + named, address);
        for (int j = 0; j < 4; ++j) {
            const int lane = named % 8 * 4 + j;
            std::uint32_t* registers = static_cast<const Matrices*>(operands[lane])->registers;
            current().shared().read(
                first_thread + lane, address + 4 * static_cast<std::uint32_t>(j), registers + named / 8, 1);
        }
    }
}

struct Vote {
    bool own;
    std::uint32_t all;
};

void compute_ballot(int, void* const* operands) {
    std::uint32_t all = 0;
    for (int lane = 0; lane < kLanes; ++lane)
        all |= static_cast<std::uint32_t>(static_cast<const Vote*>(operands[lane])->own) << lane;
    for (int lane = 0; lane < kLanes; ++lane) static_cast<Vote*>(operands[lane])->all = all;
}

struct Exchange {
    std::uint32_t own, found;
    int mask;
};

void compute_shuffle(int first_thread, void* const* operands) {
    for (int lane = 0; lane < kLanes; ++lane) {
        auto& to = *static_cast<Exchange*>(operands[lane]);
        if (to.mask < 0 || to.mask >= kLanes)
            fail("thread %d shuffles by %d: not a lane of its warp", first_thread + lane, to.mask);
        to.found = static_cast<const Exchange*>(operands[lane ^ to.mask])->own;
    }
}

const Together kAndProduct{"mma.and", compute_product<true>}, kXorProduct{"mma.xor", compute_product<false>};
const Together kMatrices{"ldmatrix", compute_matrices}, kBallot{"a ballot", compute_ballot};
const Together kShuffle{"a shuffle", compute_shuffle};

// The first `count` copies of a thread come to their end.
void land(Block& block, std::size_t count) {
    std::vector<Copy>& copies = block.own().copies;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t words[4] = {0, 0, 0, 0};
        const Copy& copy = copies[i];
        if (copy.is_there) std::memcpy(words, copy.from, static_cast<std::size_t>(copy.bytes));
        block.shared().end_copy(block.thread(), copy.address, words, copy.bytes / 4);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace

void mma(int* sums, const std::uint32_t* a, const std::uint32_t* b, bool is_and) {
    Product own{sums, a, b};
    current().arrive(is_and ? kAndProduct : kXorProduct, &own);
}

void load_matrices(std::uint32_t* registers, std::uint32_t address) {
    Matrices own{registers, address};
    current().arrive(kMatrices, &own);
}

std::uint32_t ballot(bool own) {
    Vote vote{own, 0};
    current().arrive(kBallot, &vote);
    return vote.all;
}

std::uint32_t shuffle_xor(std::uint32_t value, int mask) {
    Exchange exchange{value, 0, mask};
    current().arrive(kShuffle, &exchange);
    return exchange.found;
}

std::uint32_t shared_base() { return current().shared().base(); }

void load_shared(std::uint32_t address, std::uint32_t* words, int count) {
    current().shared().read(thread(), address, words, count);
}

void store_shared(std::uint32_t address, const std::uint32_t* words, int count) {
    current().shared().write(thread(), address, words, count);
}

// Where it is not there, PTX reads nothing and writes zeros.
void copy_async(std::uint32_t address, const void* from, int bytes, bool is_there) {
    if (is_there) note_wide("copies", from, static_cast<std::size_t>(bytes), false);
    current().shared().begin_copy(thread(), address, bytes / 4);
    current().own().copies.push_back({address, from, bytes, is_there});
}

void commit() { current().own().group_ends.push_back(current().own().copies.size()); }

// Covers committed groups but for the last `left` of this thread; never a copy behind its last commit.
void wait_groups(int left) {
    Block& block = current();
    std::vector<std::size_t>& ends = block.own().group_ends;
    if (ends.size() <= static_cast<std::size_t>(left)) return;
    const std::size_t groups = ends.size() - static_cast<std::size_t>(left), count = ends[groups - 1];
    land(block, count);
    ends.erase(ends.begin(), ends.begin() + static_cast<std::ptrdiff_t>(groups));
    for (std::size_t& end : ends) end -= count;
}

// Rounds to the nearest, ties to even; every NaN becomes the one that a GPU's conversion gives.
std::uint16_t to_half(float value) {
    if (value != value) return 0x7FFF;
    const auto half = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof(bits));
    return bits;
}

float from_half(std::uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof(half));
    return static_cast<float>(half);
}

}  // namespace shim
