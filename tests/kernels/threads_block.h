// How a GPU's program (csrc/common/program.h) is run under a thread sanitizer: every thread of a block
// is one of the operating system's, and waits where it would wait on the GPU.  The sanitizer reports
// each access that no barrier orders.

#pragma once

#include <pthread.h>

#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/common/program.h"

namespace seqrec {

struct Barrier {
    pthread_barrier_t barrier;
    explicit Barrier(unsigned count) { pthread_barrier_init(&barrier, nullptr, count); }
    void wait() { pthread_barrier_wait(&barrier); }
};

// What a warp's registers go through.
struct Crossing {
    Barrier barrier{kWarpSize};
    uint64_t values[kWarpSize];
};

struct ThreadWarp {
    template <typename T>
    struct Lanes {
        T value;
        T& operator[](int) { return value; }
        const T& operator[](int) const { return value; }
    };

    int index, lane;
    Crossing* crossing;

    template <typename Step>
    void each(const Step& step) {
        step(lane);
    }
    // result(values): what a lane makes of everybody's.
    template <typename T, typename Result>
    auto cross(const Lanes<T>& x, const Result& result) {
        uint64_t bits = 0;
        std::memcpy(&bits, &x.value, sizeof(T));
        crossing->values[lane] = bits;
        sync();
        const auto found = result(crossing->values);
        sync();
        return found;
    }
    template <typename T>
    static T of(uint64_t bits) {
        T value;
        std::memcpy(&value, &bits, sizeof(T));
        return value;
    }
    template <typename T>
    Lanes<T> exchange(const Lanes<T>& x, int mask) {
        return {cross(x, [&](const uint64_t* all) { return of<T>(all[lane ^ mask]); })};
    }
    template <typename T>
    Lanes<T> take(const Lanes<T>& x, const Lanes<int>& from) {
        return {cross(x, [&](const uint64_t* all) { return of<T>(all[from.value]); })};
    }
    Lanes<uint32_t> match(const Lanes<uint32_t>& x) {
        return {cross(x, [&](const uint64_t* all) {
            uint32_t bits = 0;
            for (int i = 0; i < kWarpSize; ++i) bits |= uint32_t{all[i] == x.value} << i;
            return bits;
        })};
    }
    uint32_t ballot(const Lanes<bool>& x) {
        return match({x.value ? 1u : 0u}).value ^ (x.value ? 0u : ~0u);
    }
    template <typename T>
    T same(const Lanes<T>& x) {
        return x.value;
    }
    void sync() { crossing->barrier.wait(); }
};

struct ThreadBlock {
    using Warp = ThreadWarp;
    int t;
    Barrier* barrier;
    Crossing* crossings;  // [kWarps]

    template <typename Phase>
    void each(const Phase& phase) {
        phase(t);
        barrier->wait();
    }
    template <typename Phase>
    void warps(const Phase& phase) {
        const int index = t / kWarpSize;
        Warp warp{index, t % kWarpSize, crossings + index};
        phase(warp);
        barrier->wait();
    }
    template <typename T>
    T read(const T* p) {
        const T value = *p;
        barrier->wait();
        return value;
    }
    uint32_t add(uint32_t* p, uint32_t more = 1) {
        return __atomic_fetch_add(p, more, __ATOMIC_RELAXED);
    }
    void mark(uint32_t* p, uint32_t bits) { __atomic_fetch_or(p, bits, __ATOMIC_RELAXED); }
};

// Blocks one after the other.
template <typename Program>
void launch(const Program& program, int64_t blocks, int64_t parts = 1) {
    static typename Program::Shared shared;
    Barrier barrier(kThreads);
    std::vector<Crossing> crossings(kWarps);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
            ThreadBlock block{t, &barrier, crossings.data()};
            for (int64_t i = 0; i < blocks * parts; ++i) {
                program.run(block, shared, i / parts, i % parts);
                barrier.wait();  // another block has another shared memory
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace seqrec
