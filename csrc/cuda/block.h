// How a GPU runs a program (common/program.h).

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/program.h"

namespace seqrec::cuda {

struct Warp {
    static constexpr unsigned kAll = 0xffffffffu;

    // A lane's own.
    template <typename T>
    struct Lanes {
        T value;
        __device__ __forceinline__ T& operator[](int) { return value; }
        __device__ __forceinline__ const T& operator[](int) const { return value; }
    };

    int index;  // in its block

    template <typename Step>
    __device__ __forceinline__ void each(const Step& step) {
        step(static_cast<int>(threadIdx.x % kWarpSize));
    }
    template <typename T>
    __device__ __forceinline__ Lanes<T> exchange(const Lanes<T>& x, int mask) {
        return {__shfl_xor_sync(kAll, x.value, mask)};
    }
    template <typename T>
    __device__ __forceinline__ Lanes<T> take(const Lanes<T>& x, const Lanes<int>& from) {
        return {__shfl_sync(kAll, x.value, from.value)};
    }
    __device__ __forceinline__ uint32_t ballot(const Lanes<bool>& x) {
        return __ballot_sync(kAll, x.value);
    }
    __device__ __forceinline__ Lanes<uint32_t> match(const Lanes<uint32_t>& x) {
        return {__match_any_sync(kAll, x.value)};
    }
    template <typename T>
    __device__ __forceinline__ T same(const Lanes<T>& x) {
        return x.value;
    }
    __device__ __forceinline__ void sync() { __syncwarp(); }
};

struct Block {
    using Warp = cuda::Warp;

    template <typename Phase>
    __device__ __forceinline__ void each(const Phase& phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
    template <typename Phase>
    __device__ __forceinline__ void warps(const Phase& phase) {
        Warp warp{static_cast<int>(threadIdx.x / kWarpSize)};
        phase(warp);
        __syncthreads();
    }

    // What an earlier phase has written.  All have read it before any thread writes it anew.
    template <typename T>
    __device__ __forceinline__ T read(const T* p) {
        const T value = *p;
        __syncthreads();
        return value;
    }

    // What stood there before.  Sums of integers do not depend on who comes first.
    __device__ __forceinline__ uint32_t add(uint32_t* p, uint32_t more = 1) {
        return atomicAdd(p, more);
    }

    __device__ __forceinline__ void mark(uint32_t* p, uint32_t bits) { atomicOr(p, bits); }
};

template <typename Program>
__global__ void __launch_bounds__(kThreads, Program::kResident)
    program_kernel(const Program program) {
    __shared__ typename Program::Shared shared;
    Block block;
    program.run(block, shared, static_cast<int64_t>(blockIdx.x), static_cast<int64_t>(blockIdx.y));
}

struct Device {
    // Starts `program` on a grid of blocks, on the device of `where` and its current stream.
    template <typename Program>
    static void launch(const torch::stable::Tensor& where, const Program& program, int64_t blocks,
                       int64_t parts = 1) {
        if (blocks == 0 || parts == 0) return;
        const torch::stable::accelerator::DeviceGuard guard(where.get_device());
        void* stream = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_get_current_cuda_stream(where.get_device(), &stream));
        const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts));
        program_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(program);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
};

}  // namespace seqrec::cuda
