// The operator of rerank_negatives on a GPU (library.cpp), for both devices.

#pragma once

#include "operands.h"
#include "rerank_rows.h"

namespace seqrec::rerank {

// Rows first_row .. of the call, as many as there are places in `found`.
template <typename Device>
void rows(const Tensor& queries, const Tensor& items, const std::optional<Tensor>& candidates,
          const std::optional<Tensor>& shared, const std::optional<Tensor>& offsets,
          const std::optional<Tensor>& ids, const std::optional<Tensor>& users, const Tensor& top_m,
          const Tensor& seed, bool drop, int64_t first_item, int64_t first_row,
          const Tensor& numbers, const Tensor& found) {
    if (items.size(0) >= (int64_t{1} << 32) - 1) throw std::runtime_error("items: 2^32 - 1 or more");
    Candidates c{};
    if (shared.has_value()) {
        c.shared = read_only<int64_t>(shared);
        c.shares = shared->size(0);
        c.shared_stride = shared->stride(0);
    }
    if (candidates.has_value()) {
        c.own = read_only<int64_t>(candidates);
        c.owned = candidates->size(1);
        c.row_stride = candidates->stride(0);
        c.column_stride = candidates->stride(1);
    }
    if (offsets.has_value()) {
        c.forbidden = {read_only<int64_t>(offsets), read_only<int64_t>(ids),
                       read_only<int64_t>(users), offsets->size(0) - 1, ids->size(0)};
    }
    c.top_m = read_only<int64_t>(top_m);
    c.seed = read_only<int64_t>(seed);
    c.first_item = first_item;
    c.items = items.size(0);
    c.drop = drop;
    if (numbers.size(0) < found.size(0) || numbers.size(1) != c.shares + c.owned) {
        throw std::runtime_error("numbers must be [rows, slots]");
    }
    with_packs(queries, {&queries, &items}, [&](auto pack) {
        using T = typename decltype(pack)::Type;
        constexpr int kPack = decltype(pack)::kPack;
        const RerankRows<T, kPack> program{
            c,
            first_row,
            read_only<T>(queries),
            queries.stride(0),
            {Layout<kPack>(items.size(1)), read_only<T>(items), items.stride(0)},
            writable<uint32_t>(numbers),
            writable<int64_t>(found)};
        Device::launch(queries, program, found.size(0));
    });
}

}  // namespace seqrec::rerank
