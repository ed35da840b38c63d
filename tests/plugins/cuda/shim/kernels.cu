// Kernels for the shim itself: what each operation does, and what each fault is. `mode` chooses the wrong turn.
#include "shim.hpp"

struct Arguments {
    const uint32_t* in;
    uint32_t* out;
    int mode;
    int count;
};

// in: [warps][32][4 of A, 2 of B, 4 of sums] -> out: [warps][32][4]
extern "C" __global__ void __launch_bounds__(64) multiply(const Arguments arguments) {
    const uint32_t* own = arguments.in + (ptx::block_x() * 64 + ptx::thread()) * 10;
    const uint32_t a[4] = {own[0], own[1], own[2], own[3]}, b[2] = {own[4], own[5]};
    int sums[4] = {int(own[6]), int(own[7]), int(own[8]), int(own[9])};
    ptx::mma(sums, a, b);
    for (int i = 0; i < 4; ++i) arguments.out[(ptx::block_x() * 64 + ptx::thread()) * 4 + i] = uint32_t(sums[i]);
}

// in: [32 rows][4 words], rows named in the order of their numbers -> out: [32][4]
extern "C" __global__ void __launch_bounds__(32) matrices(const Arguments arguments) {
    const int lane = ptx::thread();
    ptx::store_shared4(ptx::shared_base() + 16 * lane, ptx::load_global4(arguments.in + 4 * lane));
    ptx::barrier();
    uint32_t found[4];
    ptx::load_matrices(found, ptx::shared_base() + 16 * lane);
    for (int i = 0; i < 4; ++i) arguments.out[4 * lane + i] = found[i];
}

// in: [32] -> out: [the ballot of odd words, word of lane ^ count][32]
extern "C" __global__ void __launch_bounds__(32) exchange(const Arguments arguments) {
    const int lane = ptx::thread();
    arguments.out[lane] = ptx::ballot(arguments.in[lane] % 2 != 0);
    arguments.out[32 + lane] = ptx::shuffle_xor(arguments.in[lane], arguments.count);
}

// in: `count` rows of [64] -> out: [64], their sum; rows are copied two ahead of where they are read, by another thread.
// mode: 1 no barrier before reading, 2 a wait that covers too little, 3 no wait at all, 4 no barrier before the next copy
extern "C" __global__ void __launch_bounds__(64) pipeline(const Arguments arguments) {
    const int thread = ptx::thread(), mode = arguments.mode;
    const auto copy = [&](int row) {
        const bool is_there = row < arguments.count;
        ptx::copy_async<4>(ptx::shared_base() + 256 * (row % 3) + 4 * thread, arguments.in + 64 * row + thread, is_there);
        ptx::commit();
    };
    uint32_t sum = 0;
    copy(0);
    copy(1);
    for (int row = 0; row < arguments.count; ++row) {
        if (mode == 2)
            ptx::wait_groups<2>();
        else if (mode != 3)
            ptx::wait_groups<1>();
        if (mode != 1) ptx::barrier();
        if (mode == 4) copy(row + 3);  // over the row that is read
        sum += ptx::load_shared(ptx::shared_base() + 256 * (row % 3) + 4 * (63 - thread));
        if (mode != 4) copy(row + 2);
    }
    ptx::wait_groups<0>();
    arguments.out[63 - thread] = sum;
}

// mode: what goes wrong at the memory of a block; 0 nothing. Shared memory has 64 words.
extern "C" __global__ void __launch_bounds__(64) touch(const Arguments arguments) {
    const int thread = ptx::thread(), mode = arguments.mode;
    const uint32_t own = ptx::shared_base() + 4 * thread;
    ptx::store_shared(own, thread);
    if (mode == 1) ptx::store_shared(ptx::shared_base(), 0);                         // two threads write
    if (mode == 2) ptx::load_shared(ptx::shared_base() + 4 * (thread ^ 32));         // one wrote, another reads
    ptx::barrier();
    if (mode == 3) ptx::store_shared(ptx::shared_base() + 4 * (thread % 63 + 1), ptx::load_shared(own));
    if (mode == 4) ptx::load_shared(ptx::shared_base() + 256 + 4 * thread);           // behind the end
    if (mode == 5) ptx::load_shared(own - 128);                                      // before the start
    if (mode == 6) ptx::load_shared4(own);                                           // misaligned
    if (mode == 7) ptx::copy_async<8>(own, arguments.in, true), ptx::commit(), ptx::wait_groups<0>();
    if (mode == 8) ptx::copy_async<4>(own, arguments.in, true), ptx::commit();        // nobody waits
    if (mode == 9) ptx::copy_async<4>(own, arguments.in, true), ptx::wait_groups<0>();  // of no group
    if (mode == 10 && thread == 0) ptx::copy_async<16>(own, arguments.in + 1, true);
    if (mode == 11 && thread == 0) ptx::copy_async<4>(own, arguments.in, true), ptx::store_shared(own, 1);
    if (mode == 12 && thread == 0) {
        ptx::copy_async<4>(own, arguments.in, true), ptx::commit();
        ptx::load_shared(own);
    }
    arguments.out[thread] = thread;
}

// Half of shared memory is written. mode: 1 a read of the rest, 2 by ldmatrix, 3 a row of ldmatrix that is misaligned
extern "C" __global__ void __launch_bounds__(32) uninitialized(const Arguments arguments) {
    const uint32_t base = ptx::shared_base(), lane = ptx::thread(), half = 16 * 16;
    if (lane < 16) ptx::store_shared4(base + 16 * lane, ptx::Words{{lane, lane, lane, lane}});
    ptx::barrier();
    uint32_t found[4] = {0, 0, 0, 0};
    if (arguments.mode == 1) found[0] = ptx::load_shared(base + half + 4 * lane);
    ptx::load_matrices(found, base + 16 * (arguments.mode == 2 ? lane : lane % 16) + (arguments.mode == 3 ? 4 : 0));
    arguments.out[lane] = found[0];
}

// mode: 1 half of a warp comes to another operation, 2 one lane leaves, 3 a warp leaves before a barrier, 4 lanes of a warp
// come to a barrier and others to a shuffle, 5 half comes to the same operation later and more often
extern "C" __global__ void __launch_bounds__(64) diverge(const Arguments arguments) {
    const int thread = ptx::thread(), mode = arguments.mode;
    uint32_t found = 0;
    if (mode == 2 && thread == 5) return;
    if (mode == 1 && thread % 32 < 16)
        found = ptx::ballot(true);
    else
        found = ptx::shuffle_xor(thread, 1);
    if (mode == 3 && thread >= 32) return;
    if (mode == 4 && thread == 40) found += ptx::shuffle_xor(thread, 2);
    if (mode == 5 && thread % 2 == 0) found += ptx::shuffle_xor(thread, 2);
    ptx::barrier();
    arguments.out[thread] = found;
}

// in: [64] -> out: [blocks][64]. mode: 1 a plain load behind the input, 2 before it, 3 a plain store behind the output, 4 to the input,
// 5 a wide load that is misaligned, 6 one over the end, 7 a wide store over the end, 8 a copy over the end, 9 a store far
// away, 10 a plain load that is misaligned
extern "C" __global__ void __launch_bounds__(32) wander(const Arguments arguments) {
    const int thread = ptx::thread(), mode = arguments.mode;
    uint32_t *in = const_cast<uint32_t*>(arguments.in), *out = arguments.out + 64 * ptx::block_x();
    uint32_t found = in[thread];
    const int last = arguments.count;
    if (mode == 1) found += in[last + 4 + thread];
    if (mode == 2) found += in[-5 - thread];
    if (mode == 3) out[last + thread] = 1;
    if (mode == 4 && thread == 7) in[thread] = 1;
    if (mode == 5) found += ptx::load_global4(in + 1).w[0];
    if (mode == 6) found += ptx::load_global4(in + last).w[0];
    if (mode == 7) ptx::store_global4(out + last, ptx::Words{});
    if (mode == 8) ptx::copy_async<4>(ptx::shared_base() + 4 * thread, in + last, true);
    if (mode == 10) found += uint32_t(*(const volatile uint64_t*)(in + 1));
    if (mode == 9) out[(size_t)1 << 60] = 1;
    out[thread] = found;
    out[32 + thread] = in[32 + thread];
}

// out: [64] of halves. mode: 1 two threads write one, 2 a thread reads what another wrote, 3 what nobody wrote yet, 4 one is
// not written
extern "C" __global__ void __launch_bounds__(64) share(const Arguments arguments) {
    const int thread = ptx::thread(), mode = arguments.mode;
    auto* out = (volatile uint16_t*)arguments.out;
    if (mode == 3) out[thread] = out[thread] + 1;
    if (mode != 4 || thread != 50) out[mode == 1 ? thread / 2 : thread] = uint16_t(thread);
    ptx::barrier();
    if (mode == 2) out[thread] = out[thread ^ 1];
}

// in: floats [count][2] -> out: [count][product, sum, difference, half of the first, float of that half]
extern "C" __global__ void __launch_bounds__(32) floats(const Arguments arguments) {
    for (int i = ptx::block_x() * 32 + ptx::thread(); i < arguments.count; i += 32 * 4) {
        const float* in = (const float*)arguments.in + 2 * i;
        float* out = (float*)arguments.out + 5 * i;
        out[0] = ptx::multiply(in[0], in[1]), out[1] = ptx::add(in[0], in[1]), out[2] = ptx::subtract(in[0], in[1]);
        const uint16_t half = ptx::to_half(in[0]);
        ((uint32_t*)out)[3] = half, out[4] = ptx::from_half(half);
    }
}

// mode: what C++ leaves undefined; 0 nothing. count: 1
extern "C" __global__ void __launch_bounds__(32) undefined(const Arguments arguments) {
    const int mode = arguments.mode, one = arguments.count;
    const int numbers[4] = {0, 1, 2, 3};
    int found = one;
    if (mode == 1) found = numbers[3 + one];
    if (mode == 2) found = one << (31 + one);
    if (mode == 3) found = 0x7fffffff + one;
    if (mode == 4) found = int(*(const uint64_t*)(arguments.in + one));
    if (mode == 5) found = one / (one - 1);
    arguments.out[ptx::thread()] = uint32_t(found);
}
