// The two arithmetics that operators are written over.
//
// Float32: operands of any dtype are read as float32.  BFloat16: bfloat16 operands stay as they are
// and meet in products of pairs, where the processor has them (kernels().bfloat16); sums are float32
// in both.  An arithmetic says how rows and panels are held (`Number`, row [padded], panel) and what
// a score of one is; what is done to a tile beyond that is said by the operator that does it.

#pragma once

#include "operands.h"

namespace seqrec::cpu {

struct Float32 {
    using Number = float;

    static int64_t panel_size(int64_t width) { return width * kLanes; }

    static const float* read(const Matrix& matrix, int64_t first, int64_t count, float* scratch,
                             int64_t& stride) {
        return matrix.read(first, count, scratch, stride);
    }

    static void read_panel(const Matrix& queries, int64_t top, float* rows, float* panel) {
        read_panel_over(queries, top, 1.0f, rows, panel);
    }

    static void score(const float* panel, int64_t width, const float* items, int64_t stride,
                      const float* bias, int64_t count, float* scores) {
        kernels().score(panel, width, items, stride, bias, count, scores, nullptr);
    }
    static float dot(const float* query, const float* item, int64_t width) {
        return kernels().dot(query, 1, item, width);
    }

    // Queries are divided by `divisor`.
    static void read_panel_over(const Matrix& queries, int64_t top, float divisor, float* rows,
                                float* panel) {
        cpu::read_panel(queries, top, divisor, rows, panel);
    }
};

struct BFloat16 {
    using Number = uint16_t;

    static bool runs(const Matrix& queries) {
        return queries.type == ScalarType::BFloat16 && kernels().bfloat16 != nullptr;
    }

    static int64_t pairs(int64_t width) { return (width + 1) / 2; }
    static int64_t panel_size(int64_t width) { return 2 * pairs(width) * kLanes; }

    static const uint16_t* read(const Matrix& matrix, int64_t first, int64_t count,
                                uint16_t* scratch, int64_t& stride) {
        return matrix.read_bfloat16(first, count, scratch, stride);
    }

    // Panel [pairs, kLanes][2].
    static void read_panel(const Matrix& queries, int64_t top, uint16_t* rows, uint16_t* panel) {
        const int64_t padded = queries.padded();
        const int64_t held = std::min<int64_t>(kLanes, queries.rows - top);
        for (int64_t i = 0; i < held; ++i) queries.copy_bfloat16(top + i, rows + i * padded);
        std::fill(rows + held * padded, rows + kLanes * padded, uint16_t{0});
        for (int64_t k = 0; k < pairs(queries.width); ++k) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const uint16_t* pair = rows + lane * padded + 2 * k;
                std::copy(pair, pair + 2, panel + (k * kLanes + lane) * 2);
            }
        }
    }

    static void score(const uint16_t* panel, int64_t width, const uint16_t* items, int64_t stride,
                      const float* bias, int64_t count, float* scores) {
        kernels().bfloat16->score(panel, pairs(width), items, stride, bias, count, scores);
    }
    static float dot(const uint16_t* query, const uint16_t* item, int64_t width) {
        return kernels().bfloat16->dot(query, item, pairs(width));
    }
};

}  // namespace seqrec::cpu
