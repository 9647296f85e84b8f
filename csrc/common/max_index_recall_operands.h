// The operators of max_index_recall on a GPU (library.cpp), for both devices.

#pragma once

#include "max_index_recall.h"
#include "operands.h"
#include "select_operands.h"

namespace seqrec::recall {

template <typename T>
Table<T> table_of(const Tensor& t) {
    return {read_only<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

template <typename Device>
void best_column(const Tensor& queries, const Tensor& sums, const Tensor& column) {
    const int64_t parts = divided_up(queries.size(0), kRows), width = queries.size(1);
    if (sums.size(0) != parts || sums.size(1) != width) throw std::runtime_error("sums: other sizes");
    with_type(queries, [&](auto one) {
        using T = decltype(one);
        const SumColumns<T> program{table_of<T>(queries), writable<double>(sums)};
        Device::launch(queries, program, divided_up(width, kWarpSize), parts);
    });
    const BestColumn rest{read_only<double>(sums), parts, width, queries.size(0),
                          writable<int64_t>(column)};
    Device::launch(queries, rest, 1);
}

template <typename Device>
void column_keys(const Tensor& items, const Tensor& column, int64_t first, int64_t k,
                 const Tensor& keys) {
    const int64_t parts = divided_up(items.size(0), kPart);
    if (keys.size(0) != parts * k) throw std::runtime_error("keys must be [parts * k]");
    with_type(items, [&](auto one) {
        using T = decltype(one);
        const ColumnParts<T> program{{table_of<T>(items), read_only<int64_t>(column)},
                                     first,
                                     writable<int64_t>(keys),
                                     select::wanted(k)};
        Device::launch(items, program, parts);
    });
}

template <typename Device>
void column_numbers(const Tensor& items, const Tensor& column, const Tensor& keys) {
    with_type(items, [&](auto one) {
        using T = decltype(one);
        const ColumnNumbers<T> program{{table_of<T>(items), read_only<int64_t>(column)},
                                       writable<uint32_t>(keys)};
        Device::launch(items, program, divided_up(items.size(0), kThreads));
    });
}

template <typename Device>
void best_keys(const Tensor& keys, int64_t part, int64_t k, const Tensor& best) {
    const int64_t parts = divided_up(keys.size(0), part);
    if (best.size(0) != parts * k) throw std::runtime_error("best must be [parts * k]");
    const select::KeyParts program{read_only<int64_t>(keys), keys.size(0), part,
                                   writable<int64_t>(best), select::wanted(k)};
    Device::launch(keys, program, parts);
}

}  // namespace seqrec::recall
