// Attention on jagged batches: what is computed is in jagged_attention.h.

#include "jagged_attention.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "operands.h"

namespace seqrec::cpu {

extern const JaggedAttentionKernels kJaggedAttentionPortable;
#if defined(__x86_64__)
extern const JaggedAttentionKernels kJaggedAttentionAvx2;
extern const JaggedAttentionKernels kJaggedAttentionAvx512;
#endif

namespace {

constexpr int64_t kTokens = 64;  // of a task: sequences that start among them

const JaggedAttentionKernels& attention_kernels() {
#if defined(__x86_64__)
    return version_of({&kJaggedAttentionAvx2, &kJaggedAttentionAvx512}, kJaggedAttentionPortable);
#else
    return kJaggedAttentionPortable;
#endif
}

JaggedAttention attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                          const Tensor& offsets, int64_t heads, bool causal, bool last,
                          const Tensor& seed, int64_t dropped) {
    JaggedAttention a{};
    a.queries = numbers<float>(queries);
    a.keys = numbers<float>(keys);
    a.values = numbers<float>(values);
    a.query_stride = queries.stride(0);
    a.key_stride = keys.stride(0);
    a.value_stride = values.stride(0);
    a.offsets = numbers<int64_t>(offsets);
    a.heads = heads;
    a.size = queries.size(1) / heads;
    a.causal = causal;
    a.last = last;
    a.scale = 1.0f / std::sqrt(static_cast<float>(a.size));
    a.drop = dropout_of(seed.const_data_ptr(), kStreamAttention, dropped);
    return a;
}

// Whether the offsets are what they have to be; inside a compiled graph nobody has looked before.
bool in_order(const Tensor& offsets, int64_t tokens) {
    const int64_t* o = numbers<int64_t>(offsets);
    const int64_t sequences = offsets.size(0) - 1;
    return o[0] == 0 && std::is_sorted(o, o + sequences + 1) && o[sequences] <= tokens;
}

// Calls work(sequence, scratch) for every sequence that is not empty.  Tasks are runs of tokens, so
// that threads get equal shares whatever the order of long and short sequences.
template <typename Work>
void for_each_sequence(const JaggedAttention& a, int64_t sequences, const Work& work) {
    int64_t longest = 0;
    for (int64_t b = 0; b < sequences; ++b) {
        longest = std::max(longest, a.offsets[b + 1] - a.offsets[b]);
    }
    const int64_t tasks = divide_up(a.offsets[sequences], kTokens);
    const int64_t size = attention_scratch(longest, a.size);
    run_tasks(tasks, [&] { return Buffer<float>(size); }, [&](int64_t task, Buffer<float>& own) {
        const int64_t* end = a.offsets + sequences;
        const int64_t* at = std::lower_bound(a.offsets, end, task * kTokens);
        for (; at < end && *at < (task + 1) * kTokens; ++at) {
            if (at[1] > at[0]) work(at - a.offsets, own.get());
        }
    });
}

void fill_rows(float* rows, int64_t stride, int64_t from, int64_t end, int64_t width, float value) {
    if (rows == nullptr) return;
    for (int64_t row = from; row < end; ++row) std::fill_n(rows + row * stride, width, value);
}

// Zeros in what no sequence writes: the rows behind the last one, and the one query of an empty one.
void clear_rows(float* rows, int64_t stride, int64_t from, int64_t end, int64_t width) {
    fill_rows(rows, stride, from, end, width, 0.0f);
}
void clear_queries(const JaggedAttention& a, int64_t sequences, int64_t count, float* rows,
                   int64_t stride, int64_t width) {
    if (!a.last) return clear_rows(rows, stride, a.offsets[sequences], count, width);
    for (int64_t b = 0; b < sequences; ++b) {
        if (a.offsets[b + 1] == a.offsets[b]) clear_rows(rows, stride, b, b + 1, width);
    }
}

// A gradient's rows, and how far they lie apart.
float* rows_of(const std::optional<Tensor>& t, int64_t& stride) {
    stride = t.has_value() ? t->stride(0) : 0;
    return written<float>(t);
}

void jagged_attention_forward(const Tensor& queries, const Tensor& keys, const Tensor& values,
                              const Tensor& offsets, int64_t heads, bool causal, bool last,
                              const Tensor& seed, int64_t dropped, const Tensor& out,
                              const Tensor& lse) {
    JaggedAttention a =
        attention(queries, keys, values, offsets, heads, causal, last, seed, dropped);
    a.out = written<float>(out);
    a.lse = written<float>(lse);
    const int64_t sequences = offsets.size(0) - 1, count = queries.size(0), width = queries.size(1);
    if (!in_order(offsets, keys.size(0))) {
        fill_rows(a.out, width, 0, count, width, NAN);
        fill_rows(a.lse, heads, 0, count, heads, NAN);
        return;
    }
    for_each_sequence(a, sequences, [&](int64_t b, float* scratch) {
        attention_kernels().attend(a, b, scratch);
    });
    clear_queries(a, sequences, count, a.out, width, width);
    clear_queries(a, sequences, count, a.lse, heads, heads);
}

void jagged_attention_backward(const Tensor& grad, const Tensor& queries, const Tensor& keys,
                               const Tensor& values, const Tensor& offsets, int64_t heads,
                               bool causal, bool last, const Tensor& seed, int64_t dropped,
                               const Tensor& lse, const std::optional<Tensor>& d_queries,
                               const std::optional<Tensor>& d_keys,
                               const std::optional<Tensor>& d_values) {
    JaggedAttention a =
        attention(queries, keys, values, offsets, heads, causal, last, seed, dropped);
    a.grad = numbers<float>(grad);
    a.lse = const_cast<float*>(numbers<float>(lse));
    a.d_queries = rows_of(d_queries, a.d_query_stride);
    a.d_keys = rows_of(d_keys, a.d_key_stride);
    a.d_values = rows_of(d_values, a.d_value_stride);
    const int64_t sequences = offsets.size(0) - 1, tokens = keys.size(0), width = keys.size(1);
    if (!in_order(offsets, tokens)) {
        fill_rows(a.d_queries, a.d_query_stride, 0, queries.size(0), width, NAN);
        fill_rows(a.d_keys, a.d_key_stride, 0, tokens, width, NAN);
        fill_rows(a.d_values, a.d_value_stride, 0, tokens, width, NAN);
        return;
    }
    for_each_sequence(a, sequences, [&](int64_t b, float* scratch) {
        attention_kernels().attend_backward(a, b, scratch);
    });
    const int64_t end = a.offsets[sequences];
    clear_queries(a, sequences, queries.size(0), a.d_queries, a.d_query_stride, width);
    clear_rows(a.d_keys, a.d_key_stride, end, tokens, width);
    clear_rows(a.d_values, a.d_value_stride, end, tokens, width);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seqrec_native, CPU, m) {
    m.impl("jagged_attention_forward", TORCH_BOX(&jagged_attention_forward));
    m.impl("jagged_attention_backward", TORCH_BOX(&jagged_attention_backward));
}

}  // namespace seqrec::cpu
