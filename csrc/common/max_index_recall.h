// The largest of one column on the GPU: the column of the largest mean, then its best items.
//
// **Column.** Blocks sum 32 columns of some rows each, in float64 (SumColumns); one block adds these
// sums in order and finds the largest mean (BestColumn).  Its place stays on the device.
//
// **Items.** A block takes kPart items' numbers of the column into shared memory, each read once from
// where it lies, and keeps their best keys (ColumnParts); select.h's programs take the best of these.
// Where many are wanted the whole column is sorted instead, as numbers whose order is the wanted one
// (ColumnNumbers, ordered_sums.h): the sort is stable, so ties stand by id.

#pragma once

#include "packs.h"
#include "select.h"

namespace seqrec::recall {

constexpr int64_t kPart = 4096;  // items of a block
constexpr int64_t kRows = 256;  // queries of a block

// A matrix of any strides.
template <typename T>
struct Table {
    const T* data;
    int64_t rows, width, row_stride, column_stride;

    SEQREC_HOST_DEVICE float operator()(int64_t row, int64_t column) const {
        return widened(data[row * row_stride + column * column_stride]);
    }
};

// Block (i, j): columns 32 i .. of the rows kRows j .. .
template <typename T>
struct SumColumns {
    struct Shared {
        double sums[kWarps][kWarpSize];
    };
    static constexpr int kResident = 4;
    Table<T> queries;
    double* sums;  // [parts, width]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t i, int64_t j) const {
        block.each([&](int t) {
            const int64_t column = i * kWarpSize + t % kWarpSize;
            const int64_t end = (j + 1) * kRows < queries.rows ? (j + 1) * kRows : queries.rows;
            double sum = 0.0;
            if (column < queries.width) {
                for (int64_t row = j * kRows + t / kWarpSize; row < end; row += kWarps) {
                    sum += queries(row, column);
                }
            }
            s.sums[t / kWarpSize][t % kWarpSize] = sum;
        });
        block.each([&](int t) {
            const int64_t column = i * kWarpSize + t;
            if (t >= kWarpSize || column >= queries.width) return;
            double sum = 0.0;
            for (int w = 0; w < kWarps; ++w) sum += s.sums[w][t];
            sums[j * queries.width + column] = sum;
        });
    }
};

// The place of the largest mean, the lowest of equal ones; -1 where none is a number.
struct BestColumn {
    struct Shared {
        float most[kThreads];
        int64_t place[kThreads];
    };
    static constexpr int kResident = 4;
    const double* sums;  // [parts, width]
    int64_t parts, width, rows;
    int64_t* column;  // [1]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t, int64_t) const {
        block.each([&](int t) {
            s.place[t] = -1;
            for (int64_t c = t; c < width; c += kThreads) {
                double sum = 0.0;
                for (int64_t part = 0; part < parts; ++part) sum += sums[part * width + c];
                const auto mean = static_cast<float>(sum / static_cast<double>(rows));
                if (mean == mean && (s.place[t] < 0 || mean > s.most[t])) {
                    s.most[t] = mean;
                    s.place[t] = c;
                }
            }
        });
        block.each([&](int t) {
            if (t != 0) return;
            int best = 0;
            for (int i = 1; i < kThreads; ++i) {
                if (s.place[i] < 0) continue;
                const bool first = s.place[best] < 0 || s.most[i] > s.most[best];
                const bool tie = s.most[i] == s.most[best] && s.place[i] < s.place[best];
                if (first || tie) best = i;
            }
            *column = s.place[best];
        });
    }
};

// The column's numbers (order_key.h), 0 where there is none or no column.
template <typename T>
struct Column {
    Table<T> items;
    const int64_t* column;  // [1]

    SEQREC_BLOCK uint32_t number(int64_t item) const {
        if (*column < 0 || *column >= items.width) return 0;
        const float value = items(item, *column);
        return value == value ? ordered(value) : 0;
    }
};

// The k best of each part of the items, as keys of items counted from `first` on.
template <typename T>
struct ColumnParts {
    struct Shared {
        select::Shared select;
        uint32_t numbers[kPart];
    };
    static constexpr int kResident = 4;
    Column<T> column;
    int64_t first;
    int64_t* keys;  // [parts, k]
    uint32_t k;

    struct Source {
        const uint32_t* numbers;
        int64_t first;
        SEQREC_BLOCK uint64_t operator()(int64_t i) const {
            const uint32_t number = numbers[i];
            return number == 0 ? 0 : key_of(number, static_cast<uint64_t>(first + i));
        }
    };

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared& s, int64_t part, int64_t) const {
        const int64_t start = part * kPart, left = column.items.rows - start;
        const int64_t n = left < kPart ? left : kPart;
        block.each([&](int t) {
            for (int64_t i = t; i < n; i += kThreads) s.numbers[i] = column.number(start + i);
        });
        select::largest(block, s.select, Source{s.numbers, first + start}, n, k,
                        reinterpret_cast<uint64_t*>(keys + part * k));
    }
};

// Numbers whose ascending order is the wanted one; 2^32 - 1, behind all, where there is none.
template <typename T>
struct ColumnNumbers {
    using Shared = Nothing;
    static constexpr int kResident = 4;
    Column<T> column;
    uint32_t* keys;  // [items]

    template <typename Block>
    SEQREC_BLOCK void run(Block& block, Shared&, int64_t i, int64_t) const {
        block.each([&](int t) {
            const int64_t item = i * kThreads + t;
            if (item < column.items.rows) keys[item] = ~column.number(item);
        });
    }
};

}  // namespace seqrec::recall
