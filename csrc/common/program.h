// What the blocks and warps of a GPU do, written so that a CPU can run it too.
//
// A *program* is a struct of arguments with a type `Shared`, what the threads of a block share,
// `kResident`, how many blocks a multiprocessor is to hold at once, which bounds their registers, and
// `run(block, shared, i, j)`, what block (i, j) of a grid does.  `Block` says how: on the GPU
// cuda/block.h, in the CPU's tests cpu/emulated_block.h, which run the very program that the GPU does.
//
// **Phases.** A program is a sequence of phases, `block.each(f)` with f(thread) or `block.warps(f)`
// with f(warp); between two phases all wait for all.  Two rules make both devices the same:
//
//   * within a phase no thread reads what another one writes, but through `Block::add` and `mark`,
//     or in its own warp behind `Warp::sync`;
//   * between phases a value that threads have written is read by `Block::read` only.
//
// **Warps.** A phase of warps is a sequence of steps, `warp.each(f)` with f(lane), and of exchanges
// between lanes.  What a lane keeps from step to step is a `Warp::Lanes<T>`: a register on the GPU, 32
// numbers on the CPU.  Everything else that a warp computes is the same in all its lanes:
//
//     y = warp.exchange(x, mask)     y[lane] = x[lane ^ mask]
//     y = warp.take(x, from)         y[lane] = x[from[lane]]
//     warp.ballot(x)                 a bit for each lane whose x is true
//     y = warp.match(x)              y[lane] has a bit for each lane with the x of this one
//     warp.same(x)                   x of any lane, where it is the same in all
//     warp.sync()                    the warp's writes are there for its lanes to read

#pragma once

#include <cstdint>

#include "host_device.h"

#if defined(__CUDACC__)
#define SEQREC_BLOCK __device__ __forceinline__
#define SEQREC_UNROLL _Pragma("unroll")
#define SEQREC_UNROLL_BY(count) SEQREC_UNROLL_BY_(unroll count)
#define SEQREC_UNROLL_BY_(words) _Pragma(#words)
#else
#define SEQREC_BLOCK inline
#define SEQREC_UNROLL
#define SEQREC_UNROLL_BY(count)
#endif

namespace seqrec {

constexpr int kThreads = 256;  // of a block
constexpr int kWarpSize = 32;
constexpr int kWarps = kThreads / kWarpSize;

SEQREC_HOST_DEVICE inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

SEQREC_HOST_DEVICE inline int bits_in(uint32_t mask) {
#if defined(__CUDA_ARCH__)
    return __popc(mask);
#else
    return __builtin_popcount(mask);
#endif
}

// What a program whose threads share nothing has for `Shared`.
struct Nothing {};

// The sum over groups of lanes that differ in the bits below `size`; the same bits in each of them.
template <typename Warp>
SEQREC_BLOCK void add_up(Warp& warp, typename Warp::template Lanes<float>& x, int size) {
    for (int step = size / 2; step > 0; step /= 2) {
        const auto other = warp.exchange(x, step);
        warp.each([&](int lane) { x[lane] += other[lane]; });
    }
}

}  // namespace seqrec
