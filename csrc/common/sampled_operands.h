// The operators of the sampled losses on a GPU (library.cpp), for both devices: their arguments as the
// programs of sampled_rows.h and ordered_sums.h.

#pragma once

#include <string>

#include "operands.h"
#include "ordered_sums.h"
#include "sampled_rows.h"

namespace seqrec::sampled {

constexpr int64_t kMost = (int64_t{1} << 31) - 64;  // so that nothing counted in an int passes it

template <typename Device>
void rows(const Tensor& queries, const Tensor& items, const Tensor& positives,
          const Tensor& negatives, const std::optional<Tensor>& log_q, std::string loss,
          double temperature, double beta, bool drop_hits, bool scored,
          const std::optional<Tensor>& upstream, const Tensor& losses, const Tensor& counts,
          const std::optional<Tensor>& d_queries, const std::optional<Tensor>& weights,
          const std::optional<Tensor>& keys) {
    const bool shared = negatives.dim() == 1;
    Call call{};
    call.rows = queries.size(0);
    call.items = items.size(0);
    if (call.items >= kMost) throw std::runtime_error("items must be below 2^31");
    call.positives = read_only<int64_t>(positives);
    call.negatives = read_only<int64_t>(negatives);
    call.row_stride = shared ? 0 : negatives.stride(0);
    call.column_stride = negatives.stride(shared ? 0 : 1);
    const int64_t count = negatives.size(shared ? 0 : 1);
    if (count >= kMost) throw std::runtime_error("negatives of a row must be below 2^31");
    call.count = static_cast<int>(count);
    call.log_q = read_only<float>(log_q);
    call.loss = loss == "bce" ? Loss::kBce : loss == "bpr" ? Loss::kBpr : Loss::kSoftmax;
    call.temperature = static_cast<float>(temperature);
    call.beta = static_cast<float>(beta);
    call.drop_hits = drop_hits;
    call.scored = scored;
    call.upstream = read_only<float>(upstream);
    call.losses = writable<float>(losses);
    call.counts = writable<float>(counts);
    call.d_queries = writable<float>(d_queries);
    call.weights = writable<float>(weights);
    call.weights_stride = weights.has_value() ? weights->stride(0) : 0;
    call.keys = writable<uint32_t>(keys);
    if ((scored || upstream.has_value()) && !weights.has_value()) {
        throw std::runtime_error("there must be weights");
    }
    with_packs(queries, {&queries, &items}, [&](auto pack) {
        using T = typename decltype(pack)::Type;
        constexpr int kPack = decltype(pack)::kPack;
        const Rows<T, kPack> program{
            call, read_only<T>(queries), queries.stride(0),
            {Layout<kPack>(items.size(1)), read_only<T>(items), items.stride(0)}};
        Device::launch(queries, program, program.blocks());
    });
}

}  // namespace seqrec::sampled

namespace seqrec::sums {

// keys and places are [2, slots], keys[0] what is sorted; the result is in row rounds % 2 of both.
template <typename Device>
void sort_slots(const Tensor& keys, const Tensor& places, const Tensor& counts, int64_t rounds) {
    const int64_t slots = keys.size(1), parts = divided_up(slots, kPart);
    if (slots >= int64_t{1} << 32) throw std::runtime_error("slots must be below 2^32");
    if (counts.size(0) != kDigits * (parts + 1)) throw std::runtime_error("counts have other sizes");
    if (slots == 0) return;
    auto *key = writable<uint32_t>(keys), *place = writable<uint32_t>(places);
    auto *count = writable<uint32_t>(counts), *totals = count + kDigits * parts;
    for (int64_t round = 0; round < rounds; ++round) {
        const int shift = static_cast<int>(8 * round);
        const int64_t from = round % 2 * slots, to = slots - from;
        Device::launch(keys, CountDigits{key + from, slots, parts, shift, count}, parts);
        Device::launch(keys, ScanDigits{parts, count, totals}, kDigits);
        const MoveDigits move{key + from,
                              round == 0 ? nullptr : place + from,
                              slots,
                              parts,
                              shift,
                              count,
                              totals,
                              key + to,
                              place + to};
        Device::launch(keys, move, parts);
    }
}

template <typename Device>
void add_sorted(const Tensor& keys, const Tensor& places, const std::optional<Tensor>& weights,
                const std::optional<Tensor>& rows, int64_t per_row, double scale,
                const Tensor& heads, const Tensor& into) {
    const Runs runs{read_only<uint32_t>(keys),
                    keys.size(0),
                    static_cast<uint32_t>(into.size(0)),
                    static_cast<float>(scale),
                    writable<float>(heads),
                    writable<float>(into)};
    if (runs.slots == 0) return;
    if (heads.size(0) != runs.tiles()) throw std::runtime_error("heads have other sizes");
    const auto add = [&](auto pack) {
        using T = typename decltype(pack)::Type;
        constexpr int kPack = decltype(pack)::kPack;
        const Layout<kPack> layout(into.size(1));
        const AddRuns<T, kPack> program{runs,
                                        layout,
                                        read_only<uint32_t>(places),
                                        read_only<float>(weights),
                                        read_only<T>(rows),
                                        rows.has_value() ? rows->stride(0) : 0,
                                        static_cast<uint32_t>(per_row)};
        Device::launch(keys, program, program.blocks(), layout.strips());
        const AddHeads<kPack> rest{runs, layout};
        Device::launch(keys, rest, rest.blocks(), layout.strips());
    };
    rows.has_value() ? with_packs(*rows, {&*rows}, add) : add(PackOf<float, 1>{});
}

}  // namespace seqrec::sums
