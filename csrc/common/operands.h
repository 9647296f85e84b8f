// Tensors as the GPU's programs take them.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>

#include "packs.h"

namespace seqrec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The numbers of a contiguous tensor, null where there is none.
template <typename T>
const T* read_only(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* read_only(const std::optional<Tensor>& t) {
    return t.has_value() ? read_only<T>(*t) : nullptr;
}
template <typename T>
T* writable(const Tensor& t) {
    return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
T* writable(const std::optional<Tensor>& t) {
    return t.has_value() ? writable<T>(*t) : nullptr;
}

// What the addresses of all packs of a matrix's rows have in common: bits that are 0 in all of them.
inline uint64_t addresses(const Tensor& t, uint64_t size) {
    if (t.stride(1) != 1 && t.size(1) > 1) throw std::runtime_error("rows must be dense");
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) |
           static_cast<uint64_t>(t.size(1)) * size |
           (t.size(0) > 1 ? static_cast<uint64_t>(t.stride(0)) * size : 0);
}

// Calls task(T{}) for a float tensor's dtype T.
template <typename Task>
void with_type(const Tensor& t, const Task& task) {
    const ScalarType type = t.scalar_type();
    if (type == ScalarType::Float) return task(0.0f);
    if (type == ScalarType::BFloat16) return task(BFloat16{});
    if (type == ScalarType::Half) return task(Float16{});
    throw std::runtime_error("tensors must be float32, bfloat16 or float16");
}

template <typename T, int kCount>
struct PackOf {
    using Type = T;
    static constexpr int kPack = kCount;
};

// Calls task(PackOf) for the dtype of matrices, with as many of their numbers as can be loaded at once.
template <typename Task>
void with_packs(const Tensor& t, std::initializer_list<const Tensor*> matrices, const Task& task) {
    const uint64_t size = t.scalar_type() == ScalarType::Float ? 4 : 2;
    uint64_t all = 0;
    for (const Tensor* matrix : matrices) all |= addresses(*matrix, size);
    with_type(t, [&](auto one) {
        using T = decltype(one);
        if (all % 16 == 0) return task(PackOf<T, 16 / sizeof(T)>{});
        if (all % (2 * sizeof(T)) == 0) return task(PackOf<T, 2>{});
        task(PackOf<T, 1>{});
    });
}

}  // namespace seqrec
