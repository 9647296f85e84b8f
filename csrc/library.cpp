// The schemas of all compiled operators, in one place.  The kernels are in cpu/ and, in a library of
// their own, in cuda/.
//
// Arguments arrive checked (seqrec_kernels/checks.py): an error thrown here would reach Python as a
// bare RuntimeError.  Outputs are allocated by the caller and written whole.  `items` and `bias`
// start at first_item; `bias` and everything that is written is contiguous.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(seqrec_native, m) {
    m.def(
        "cross_entropy_forward(Tensor queries, Tensor items, Tensor columns, Tensor? bias, "
        "float temperature, Tensor(a!) lse, Tensor(b!) chosen) -> ()");
    m.def(
        "cross_entropy_one_pass(Tensor queries, Tensor items, Tensor columns, Tensor? bias, "
        "float temperature, Tensor dense, Tensor pull, int workspace, Tensor(a!) lse, "
        "Tensor(b!) chosen, Tensor(c!)? d_queries, Tensor(d!)? d_items, Tensor(e!)? d_bias) -> ()");
    m.def(
        "cross_entropy_backward(Tensor queries, Tensor items, Tensor columns, Tensor? bias, "
        "float temperature, Tensor dense, Tensor pull, int workspace, Tensor lse, "
        "Tensor(a!)? d_queries, Tensor(b!)? d_items, Tensor(c!)? d_bias) -> ()");
    m.def(
        "rank(Tensor queries, Tensor items, Tensor targets, Tensor? bias, int first_item, "
        "Tensor? seen_offsets, Tensor? seen_ids, Tensor? seen_rows, float? seen_score, "
        "Tensor(a!) greater, Tensor(b!) equal) -> ()");
    m.def(
        "topk(Tensor queries, Tensor items, Tensor? bias, int first_item, Tensor? seen_offsets, "
        "Tensor? seen_ids, Tensor? seen_rows, Tensor(a!) scores, Tensor(b!) ids) -> ()");
    m.def(
        "select_scores(Tensor scores, Tensor? bias, int first, int part, int k, int first_item, "
        "int items, Tensor? seen_offsets, Tensor? seen_ids, Tensor? seen_rows, Tensor(a!) keys) "
        "-> ()");
    m.def("select_keys(Tensor keys, int first_item, Tensor(a!) scores, Tensor(b!) ids) -> ()");
    m.def(
        "sampled(Tensor queries, Tensor items, Tensor positives, Tensor negatives, Tensor? log_q, "
        "str loss, float temperature, float beta, bool drop_hits, Tensor? upstream, int workspace, "
        "Tensor(a!) losses, Tensor(b!) counts, Tensor(c!)? d_queries, Tensor(d!)? d_items, "
        "Tensor(e!)? d_log_q) -> ()");
    // the sampled losses on a GPU (common/sampled_operands.h); `keys` and `places` hold unsigned numbers
    m.def(
        "sampled_rows(Tensor queries, Tensor items, Tensor positives, Tensor negatives, "
        "Tensor? log_q, str loss, float temperature, float beta, bool drop_hits, bool scored, "
        "Tensor? upstream, Tensor(a!) losses, Tensor(b!) counts, Tensor(c!)? d_queries, "
        "Tensor(d!)? weights, Tensor(e!)? keys) -> ()");
    m.def("sort_slots(Tensor(a!) keys, Tensor(b!) places, Tensor(c!) counts, int rounds) -> ()");
    m.def(
        "add_sorted(Tensor keys, Tensor places, Tensor? weights, Tensor? rows, int per_row, "
        "float scale, Tensor(a!) heads, Tensor(b!) into) -> ()");
    // recall and re-ranking on a GPU (common/*_operands.h)
    m.def("best_column(Tensor queries, Tensor(a!) sums, Tensor(b!) column) -> ()");
    m.def("column_keys(Tensor items, Tensor column, int first, int k, Tensor(a!) keys) -> ()");
    m.def("column_numbers(Tensor items, Tensor column, Tensor(a!) keys) -> ()");
    m.def("best_keys(Tensor keys, int part, int k, Tensor(a!) best) -> ()");
    m.def(
        "rerank_rows(Tensor queries, Tensor items, Tensor? candidates, Tensor? shared, "
        "Tensor? forbidden_offsets, Tensor? forbidden_ids, Tensor? forbidden_rows, Tensor top_m, "
        "Tensor seed, bool drop, int first_item, int first_row, Tensor(a!) numbers, "
        "Tensor(b!) found) -> ()");
    m.def(
        "max_index_recall(Tensor queries, Tensor items, int first_item, Tensor(a!) found) -> ()");
    // `items` is the whole table
    m.def(
        "rerank_negatives(Tensor queries, Tensor items, Tensor? candidates, Tensor? shared, "
        "Tensor? forbidden_offsets, Tensor? forbidden_ids, Tensor? forbidden_rows, Tensor top_m, "
        "Tensor seed, bool drop, int first_item, Tensor(a!) found) -> ()");
    m.def("cuda_build() -> str");
    m.def(
        "contrast(Tensor anchors, Tensor positives, Tensor negatives, Tensor? noise, "
        "Tensor? anchor_ids, Tensor? negative_ids, Tensor seed, float temperature, "
        "float? focal_scale, float margin, float mix_low, float mix_high, float mix_weight, "
        "bool paper, Tensor? upstream, int workspace, Tensor(a!)? losses, Tensor(b!)? state, "
        "Tensor(c!)? d_anchors, Tensor(d!)? d_positives, Tensor(e!)? d_negatives, "
        "Tensor(f!)? d_noise) -> ()");
    m.def(
        "ascend_noise(Tensor anchors, Tensor positives, Tensor losses, Tensor noise, "
        "float temperature, int steps, float step_size, Tensor(a!) moved) -> ()");
    // one iteration of k-means; bounds [3, M] and moved [C] are float64
    m.def(
        "kmeans_step(Tensor points, Tensor centroids, Tensor half, Tensor moved, bool fresh, "
        "Tensor(a!) bounds, Tensor(b!) chosen, Tensor(c!) sums, Tensor(d!) sizes) -> ()");
    m.def(
        "jagged_attention_forward(Tensor queries, Tensor keys, Tensor values, Tensor offsets, "
        "int heads, bool causal, bool last, Tensor seed, int dropped, Tensor(a!) out, "
        "Tensor(b!) lse) -> ()");
    m.def(
        "jagged_attention_backward(Tensor grad, Tensor queries, Tensor keys, Tensor values, "
        "Tensor offsets, int heads, bool causal, bool last, Tensor seed, int dropped, Tensor lse, "
        "Tensor(a!)? d_queries, Tensor(b!)? d_keys, Tensor(c!)? d_values) -> ()");
    m.def(
        "norm_forward(Tensor x, Tensor? h, Tensor? shift, Tensor weight, Tensor bias, float eps, "
        "bool after, Tensor seed, int dropped, Tensor(a!)? s, Tensor(b!) y, Tensor(c!) unit, "
        "Tensor(d!) rate) -> ()");
    m.def(
        "norm_backward(Tensor grad, Tensor? grad_s, Tensor weight, bool after, Tensor seed, "
        "int dropped, Tensor unit, Tensor rate, Tensor(a!) d_x, Tensor(b!) d_h, "
        "Tensor(c!) d_scales) -> ()");
    m.def(
        "residual_forward(Tensor x, Tensor h, Tensor shift, Tensor seed, int dropped, "
        "Tensor(a!) s) -> ()");
    m.def(
        "residual_backward(Tensor grad, Tensor seed, int dropped, Tensor(a!) d_h, "
        "Tensor(b!) d_shift) -> ()");
    m.def(
        "embed_forward(Tensor table, Tensor items, Tensor places, Tensor at, float scale, "
        "Tensor seed, int dropped, Tensor(a!) y) -> ()");
    m.def(
        "embed_backward(Tensor grad, Tensor items, Tensor at, float scale, Tensor seed, "
        "int dropped, Tensor(a!) d_table, Tensor(b!) d_places) -> ()");
    // products narrow to bfloat16 where asked and where the processor multiplies it
    m.def(
        "linear_forward(Tensor x, Tensor weight, Tensor? bias, bool narrow, Tensor(a!) y) -> ()");
    // d_parameters: the weight's gradient and, where there is room for it, the bias's behind it
    m.def(
        "linear_backward(Tensor grad, Tensor x, Tensor weight, bool narrow, Tensor(a!) d_x, "
        "Tensor(b!) d_parameters) -> ()");
    // y without its bias
    m.def(
        "feed_forward_forward(Tensor x, Tensor first, Tensor bias, Tensor second, bool relu, "
        "Tensor seed, int dropped, bool narrow, Tensor(a!)? h, Tensor(b!) y) -> ()");
    // d_parameters: of first, second and bias, one behind the other
    m.def(
        "feed_forward_backward(Tensor grad, Tensor x, Tensor first, Tensor bias, Tensor second, "
        "Tensor h, bool relu, Tensor seed, int dropped, bool narrow, Tensor(a!) d_x, "
        "Tensor(b!) d_parameters) -> ()");
    m.def("force_kernels(str name) -> bool");
    m.def("available_kernels() -> str");
}
