// The operators select_scores and select_keys (library.cpp), for both devices: their arguments as the
// programs of select.h.

#pragma once

#include "operands.h"
#include "select.h"

namespace seqrec::select {

inline uint32_t wanted(int64_t k) {
    if (k < 1 || k >= int64_t{1} << 31) throw std::runtime_error("k must be in [1, 2^31)");
    return static_cast<uint32_t>(k);
}

template <typename Device>
void select_scores(const Tensor& scores, const std::optional<Tensor>& bias, int64_t first,
                   int64_t part, int64_t k, int64_t first_item, int64_t items,
                   const std::optional<Tensor>& seen_offsets, const std::optional<Tensor>& seen_ids,
                   const std::optional<Tensor>& seen_rows, const Tensor& keys) {
    if (part < 1 || part > kMostPart) throw std::runtime_error("part must be in [1, 16384]");
    ScoreProblem p{};
    p.scores = read_only<float>(scores);
    p.bias = read_only<float>(bias);
    p.rows = scores.size(0);
    p.width = scores.size(1);
    p.stride = scores.stride(0);
    p.part = part;
    p.first = first;
    if (seen_offsets.has_value()) {
        p.seen = {read_only<int64_t>(seen_offsets), read_only<int64_t>(seen_ids),
                  read_only<int64_t>(seen_rows),    seen_offsets->size(0) - 1,
                  seen_ids->size(0),                first_item,
                  items};
    }
    p.keys = writable<int64_t>(keys);
    p.keys_stride = keys.stride(0);
    p.k = wanted(k);
    if (keys.size(1) != p.parts() * k) throw std::runtime_error("keys must be [rows, parts * k]");
    Device::launch(scores, p, p.rows, p.parts());
}

template <typename Device>
void select_keys(const Tensor& keys, int64_t first_item, const Tensor& scores, const Tensor& ids) {
    const KeyProblem p{read_only<int64_t>(keys),
                       keys.size(0),
                       keys.size(1),
                       first_item,
                       writable<float>(scores),
                       writable<int64_t>(ids),
                       wanted(ids.size(1))};
    Device::launch(keys, p, p.rows);
}

}  // namespace seqrec::select
