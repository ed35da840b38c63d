// Where the kernels' own functions say that lanes read and write shared memory: one number a lane, for a test.
#include "epilogue.cuh"
#include "ptx.cuh"
#include "tile.cuh"

namespace {

struct Arguments {
    uint32_t* out;
    int32_t what, first, step;
};

using tile::Tile;

__device__ uint32_t address_of(const Arguments& own) {
    const int lane = ptx::thread();
    switch (own.what) {
        case 0: return tile::pixels_at(0, own.first, own.step);
        case 1: return tile::filters_at(0, own.first, own.step);
        case 2: {  // copies of 16 bytes into rows
            const int row = own.first + lane / tile::PIECES, piece = lane % tile::PIECES;
            return row * tile::ROW_BYTES + tile::swizzled(row, piece) * tile::PIECE_BYTES;
        }
        case 3: return epilogue::Sorted<Tile<128, 64, 2, 2, 3>>{false}.at(lane % 4 * 2 + own.step, lane / 4 + own.first);
        case 4: return epilogue::Sorted<Tile<64, 32, 4, 1, 3>>{false}.at(lane % 4 * 2 + own.step, lane / 4 + own.first);
        default: return epilogue::Sorted<Tile<16, 128, 1, 4, 3>>{false}.at(lane % 4 * 2 + own.step, lane / 4 + own.first);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32) addresses(const Arguments own) { own.out[ptx::thread()] = address_of(own); }
