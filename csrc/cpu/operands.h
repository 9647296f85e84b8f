// Tensors as the operators read them: any stride, three dtypes, one form (float32 rows, padded).

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "../common/csr.h"
#include "kernels.h"

namespace seqrec::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- memory --------------------------------------------------------------------------------------

// Uninitialised numbers on a cache line's boundary.
template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t count) : data_(allocate(count)) {}
    T* get() const { return data_.get(); }
    T* operator+(int64_t offset) const { return data_.get() + offset; }
    T& operator[](int64_t place) const { return data_.get()[place]; }

  private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    static T* allocate(int64_t count) {
        const auto bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T);
        void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (p == nullptr) throw std::bad_alloc();
        return static_cast<T*>(p);
    }
    std::unique_ptr<T, Free> data_;
};

// ---- threads -------------------------------------------------------------------------------------

// Calls task(i, scratch) for every i below `count`, on torch's threads, each with a `Scratch` of its
// own.  What a task computes depends on i alone, and tasks write to places of their own, so neither
// the number of threads nor who takes which task changes a bit of a result.
//
// Threads take tasks as they come free: tasks differ in size (a last tile, a long sequence) and
// processors in what else they do, and a region is as slow as its slowest thread.
template <typename Scratch, typename Task>
void run_tasks(int64_t count, const Scratch& make_scratch, const Task& task) {
    const int64_t hands = std::min<int64_t>(torch::stable::get_num_threads(), count);
    const int64_t at_once = std::max<int64_t>(1, count / (8 * std::max<int64_t>(hands, 1)));
    std::atomic<int64_t> taken{0};
    torch::stable::parallel_for(0, hands, 1, [&](int64_t, int64_t) {
        auto scratch = make_scratch();
        for (int64_t i; (i = taken.fetch_add(at_once, std::memory_order_relaxed)) < count;) {
            const int64_t end = std::min(i + at_once, count);
            for (; i < end; ++i) task(i, scratch);
        }
    });
}

// ---- matrices ------------------------------------------------------------------------------------

// A [rows, width] tensor of float32, bfloat16 or float16 with its strides.
struct Matrix {
    const void* data;
    ScalarType type;
    int64_t rows, width, row_stride, column_stride;

    explicit Matrix(const Tensor& t)
        : data(t.const_data_ptr()),
          type(t.scalar_type()),
          rows(t.size(0)),
          width(t.size(1)),
          row_stride(t.stride(0)),
          column_stride(t.stride(1)) {}

    // The width that rows in float32 scratch have; the columns behind `width` are zero.
    int64_t padded() const { return std::max<int64_t>(divide_up(width, kPad), 1) * kPad; }

    // Rows first .. first + count - 1 as float32 with `padded()` columns, and their stride: where
    // they lie if the table is like that, else copied to `scratch` [count, padded()].
    const float* read(int64_t first, int64_t count, float* scratch, int64_t& stride) const {
        if (type == ScalarType::Float && column_stride == 1 && width == padded()) {
            stride = row_stride;
            return static_cast<const float*>(data) + first * row_stride;
        }
        stride = padded();
        for (int64_t i = 0; i < count; ++i) copy_row(first + i, scratch + i * stride);
        return scratch;
    }

    // One row as float32; the columns up to `padded()` are zero.
    void copy_row(int64_t row, float* out) const {
        const int64_t start = row * row_stride;
        if (type == ScalarType::Float) {
            const float* in = static_cast<const float*>(data) + start;
            if (column_stride == 1) {
                std::memcpy(out, in, static_cast<size_t>(width) * sizeof(float));
            } else {
                for (int64_t d = 0; d < width; ++d) out[d] = in[d * column_stride];
            }
        } else {
            const uint16_t* in = static_cast<const uint16_t*>(data) + start;
            const auto widen = type == ScalarType::BFloat16 ? kernels().from_bfloat16
                                                            : kernels().from_float16;
            if (column_stride == 1) {
                widen(in, width, out);
            } else {
                for (int64_t d = 0; d < width; ++d) widen(in + d * column_stride, 1, out + d);
            }
        }
        std::fill(out + width, out + padded(), 0.0f);
    }

    // The same of a bfloat16 matrix as it is.
    const uint16_t* read_bfloat16(int64_t first, int64_t count, uint16_t* scratch,
                                  int64_t& stride) const {
        if (column_stride == 1 && width == padded()) {
            stride = row_stride;
            return static_cast<const uint16_t*>(data) + first * row_stride;
        }
        stride = padded();
        for (int64_t i = 0; i < count; ++i) copy_bfloat16(first + i, scratch + i * stride);
        return scratch;
    }
    void copy_bfloat16(int64_t row, uint16_t* out) const {
        const uint16_t* in = static_cast<const uint16_t*>(data) + row * row_stride;
        if (column_stride == 1) {
            std::memcpy(out, in, static_cast<size_t>(width) * sizeof(uint16_t));
        } else {
            for (int64_t d = 0; d < width; ++d) out[d] = in[d * column_stride];
        }
        std::fill(out + width, out + padded(), uint16_t{0});
    }
};

// kLanes queries from row `top` on, divided by `divisor`: as rows [kLanes, padded] and, transposed,
// as a panel [width, kLanes].  Rows past the last are zero.
inline void read_panel(const Matrix& queries, int64_t top, float divisor, float* rows,
                       float* panel) {
    const int64_t padded = queries.padded();
    const int64_t held = std::min<int64_t>(kLanes, queries.rows - top);
    for (int64_t i = 0; i < held; ++i) {
        float* row = rows + i * padded;
        queries.copy_row(top + i, row);
        if (divisor != 1.0f) {
            for (int64_t d = 0; d < queries.width; ++d) row[d] /= divisor;
        }
    }
    std::fill(rows + held * padded, rows + kLanes * padded, 0.0f);
    for (int64_t d = 0; d < queries.width; ++d) {
        for (int lane = 0; lane < kLanes; ++lane) panel[d * kLanes + lane] = rows[lane * padded + d];
    }
}

// ---- vectors -------------------------------------------------------------------------------------

// The numbers of a contiguous tensor, null where there is none.
template <typename T>
const T* numbers(const std::optional<Tensor>& t) {
    return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
template <typename T>
const T* numbers(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
}
// Lists of items as operators take them, contiguous.
inline Csr csr_of(const std::optional<Tensor>& offsets, const std::optional<Tensor>& ids,
                  const std::optional<Tensor>& rows) {
    return {numbers<int64_t>(offsets), numbers<int64_t>(ids), numbers<int64_t>(rows),
            offsets.has_value() ? offsets->size(0) - 1 : 0, ids.has_value() ? ids->size(0) : 0};
}

template <typename T>
T* written(const std::optional<Tensor>& t) {
    return t.has_value() ? static_cast<T*>(t->mutable_data_ptr()) : nullptr;
}
template <typename T>
T* written(const Tensor& t) {
    return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace seqrec::cpu
