// How the threads of a GPU's block run the phases of a program (common/select.h).

#pragma once

#include <cstdint>

namespace seqrec::cuda {

struct Block {
    template <typename Phase>
    __device__ __forceinline__ void each(const Phase& phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }

    // What an earlier phase has written.  All have read it before any thread writes it anew.
    template <typename T>
    __device__ __forceinline__ T read(const T* p) {
        const T value = *p;
        __syncthreads();
        return value;
    }

    // Adds 1; what stood there before.  Sums of integers do not depend on who comes first.
    __device__ __forceinline__ uint32_t add(uint32_t* p) { return atomicAdd(p, 1u); }

    __device__ __forceinline__ void mark(uint32_t* p, uint32_t bits) { atomicOr(p, bits); }
};

}  // namespace seqrec::cuda
