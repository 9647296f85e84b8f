// The best k items of every query: each tile of scores is compared with the queries' k-th best scores
// so far while it lies in cache, and only what is above is looked at.
//
// A query keeps a list of keys (order_key.h) with room for more than k.  When it is full it is cut to
// its best k and the worst of them becomes the threshold.  Items come in ascending order, so one that
// only ties with the threshold has k better ones before it and is rightly passed over.  Scores of -inf
// and NaN are above no threshold; a seen item scores NaN.

#include <torch/csrc/stable/library.h>

#include <functional>
#include <limits>

#include "../common/order_key.h"
#include "ranking.h"

namespace seqrec::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

using Keys = std::vector<uint64_t>;

// Cuts `keys` to its best k, in no order.
void cut(Keys& keys, int64_t k) {
    if (static_cast<int64_t>(keys.size()) <= k) return;
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<uint64_t>());
    keys.resize(static_cast<size_t>(k));
}

// The lists of a panel's queries.
struct Lists {
    Keys keys[kLanes];
    float threshold[kLanes];

    void start(size_t room, int64_t held) {
        for (int lane = 0; lane < kLanes; ++lane) {
            keys[lane].clear();
            if (lane < held) keys[lane].reserve(room);
            // lanes past the last query take nothing
            threshold[lane] = lane < held ? kNone : std::numeric_limits<float>::infinity();
        }
    }

    void offer(int lane, float score, int64_t item, int64_t k, size_t room) {
        if (!(score > threshold[lane])) return;
        Keys& own = keys[lane];
        own.push_back(order_key(score, static_cast<uint64_t>(item)));
        if (own.size() < room) return;
        cut(own, k);
        threshold[lane] = score_of(own[static_cast<size_t>(k - 1)]);
    }
};

template <typename Arithmetic>
void topk_by(const Tensor& queries, const Tensor& items, const std::optional<Tensor>& bias,
             int64_t first_item, const std::optional<Tensor>& seen_offsets,
             const std::optional<Tensor>& seen_ids, const std::optional<Tensor>& seen_rows,
             const Tensor& scores, const Tensor& ids) {
    const Sweep<Arithmetic> sweep(queries, items, bias);
    const SeenRows seen(seen_offsets, seen_ids, seen_rows, first_item,
                        first_item + sweep.items.rows);
    const int64_t columns = scores.size(1);
    const int64_t k = std::min(columns, sweep.items.rows);
    const auto room = static_cast<size_t>(k + std::max<int64_t>(128, std::min<int64_t>(k, 4096)));

    std::vector<Keys> found(static_cast<size_t>(sweep.chunks * sweep.panels * kLanes));
    sweep.template run<Lists>(
        seen, NAN,
        [&](int64_t, int64_t panel, Lists& own) { own.start(room, sweep.held(panel)); },
        [&](int64_t, int64_t, int64_t first, int64_t count, const float* tile, Lists& own) {
            uint64_t hits[kRankTile];
            if (!kernels().above(tile, count, own.threshold, hits)) return;
            for (int64_t i = 0; i < count; ++i) {
                for (uint64_t left = hits[i]; left != 0; left &= left - 1) {
                    const int lane = __builtin_ctzll(left);
                    own.offer(lane, tile[i * kLanes + lane], first + i, k, room);
                }
            }
        },
        [&](int64_t chunk, int64_t panel, Lists& own) {
            for (int64_t lane = 0; lane < sweep.held(panel); ++lane) {
                cut(own.keys[lane], k);
                found[static_cast<size_t>((chunk * sweep.panels + panel) * kLanes + lane)] =
                    std::move(own.keys[lane]);
            }
        });

    float* best = written<float>(scores);
    int64_t* which = written<int64_t>(ids);
    run_tasks(sweep.batch, [] { return Keys(); }, [&](int64_t b, Keys& all) {
        all.clear();
        if (!seen.wrong(b)) {
            for (int64_t chunk = 0; chunk < sweep.chunks; ++chunk) {
                Keys& part = found[static_cast<size_t>(chunk * sweep.panels * kLanes + b)];
                all.insert(all.end(), part.begin(), part.end());
                Keys().swap(part);
            }
            cut(all, k);
            std::sort(all.begin(), all.end(), std::greater<uint64_t>());
        }
        const auto held = static_cast<int64_t>(all.size());
        for (int64_t i = 0; i < columns; ++i) {
            const bool any = i < held;
            best[b * columns + i] = any ? score_of(all[static_cast<size_t>(i)]) : kNone;
            which[b * columns + i] = any ? id_of(all[static_cast<size_t>(i)]) + first_item : -1;
        }
    });
}

void topk(const Tensor& queries, const Tensor& items, const std::optional<Tensor>& bias,
          int64_t first_item, const std::optional<Tensor>& seen_offsets,
          const std::optional<Tensor>& seen_ids, const std::optional<Tensor>& seen_rows,
          const Tensor& scores, const Tensor& ids) {
    const auto run = BFloat16::runs(Matrix(queries)) ? topk_by<BFloat16> : topk_by<Float32>;
    run(queries, items, bias, first_item, seen_offsets, seen_ids, seen_rows, scores, ids);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) { m.impl("topk", TORCH_BOX(&topk)); }

}  // namespace seqrec::cpu
