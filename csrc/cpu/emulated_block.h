// How a CPU runs a GPU's program (common/program.h), one thread playing all of a block's.
//
// This is how the programs are tested without a GPU, so it is unkind: shared memory starts as noise,
// and the threads of a phase, the warps of a phase and the lanes of a step come in another order each
// time, so that a result which depends on the order shows.

#pragma once

#include <cstring>
#include <memory>

#include "../common/program.h"
#include "operands.h"

namespace seqrec::cpu {

// A place among `count`, a power of two, that moves from turn to turn.
inline int shuffled(int i, uint32_t turn, int count) {
    return i ^ static_cast<int>((turn * 0x9e3779b9u >> 16) % static_cast<uint32_t>(count));
}

struct EmulatedWarp {
    template <typename T>
    struct Lanes {
        T values[kWarpSize];
        T& operator[](int lane) { return values[lane]; }
        const T& operator[](int lane) const { return values[lane]; }
    };

    int index;
    uint32_t turn = 0;

    template <typename Step>
    void each(const Step& step) {
        ++turn;
        for (int i = 0; i < kWarpSize; ++i) step(shuffled(i, turn, kWarpSize));
    }
    template <typename T>
    Lanes<T> exchange(const Lanes<T>& x, int mask) {
        Lanes<T> y;
        for (int lane = 0; lane < kWarpSize; ++lane) y[lane] = x[lane ^ mask];
        return y;
    }
    template <typename T>
    Lanes<T> take(const Lanes<T>& x, const Lanes<int>& from) {
        Lanes<T> y;
        for (int lane = 0; lane < kWarpSize; ++lane) y[lane] = x[from[lane]];
        return y;
    }
    uint32_t ballot(const Lanes<bool>& x) {
        uint32_t bits = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) bits |= uint32_t{x[lane]} << lane;
        return bits;
    }
    Lanes<uint32_t> match(const Lanes<uint32_t>& x) {
        Lanes<uint32_t> y;
        for (int lane = 0; lane < kWarpSize; ++lane) {
            y[lane] = 0;
            for (int i = 0; i < kWarpSize; ++i) y[lane] |= uint32_t{x[i] == x[lane]} << i;
        }
        return y;
    }
    template <typename T>
    T same(const Lanes<T>& x) {
        return x[static_cast<int>(turn % kWarpSize)];
    }
    void sync() {}
};

struct EmulatedBlock {
    using Warp = EmulatedWarp;
    uint32_t turn = 0;

    template <typename Phase>
    void each(const Phase& phase) {
        ++turn;
        for (int t = 0; t < kThreads; ++t) phase(shuffled(t, turn, kThreads));
    }
    template <typename Phase>
    void warps(const Phase& phase) {
        ++turn;
        for (int i = 0; i < kWarps; ++i) {
            Warp warp{shuffled(i, turn, kWarps)};
            phase(warp);
        }
    }
    template <typename T>
    T read(const T* p) {
        return *p;
    }
    uint32_t add(uint32_t* p, uint32_t more = 1) {
        const uint32_t before = *p;
        *p += more;
        return before;
    }
    void mark(uint32_t* p, uint32_t bits) { *p |= bits; }
};

struct EmulatedDevice {
    template <typename Program>
    static void launch(const Tensor&, const Program& program, int64_t blocks, int64_t parts = 1) {
        using Shared = typename Program::Shared;
        const auto noise = [] {
            auto shared = std::make_unique<Shared>();
            std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof(Shared));
            return shared;
        };
        run_tasks(blocks * parts, noise, [&](int64_t i, std::unique_ptr<Shared>& shared) {
            EmulatedBlock block;
            program.run(block, *shared, i / parts, i % parts);
        });
    }
};

}  // namespace seqrec::cpu
