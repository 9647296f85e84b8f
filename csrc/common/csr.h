// A list of items for each row of a batch: the CSR of types.py, for the CPU and CUDA.
//
// Inside a compiled graph, and on a GPU, nobody has looked at its values, so every index is checked
// before it is used.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace seqrec {

struct Csr {
    const int64_t* offsets;  // [users + 1]; null: no list is given, and all are empty
    const int64_t* ids;      // [entries]
    const int64_t* rows;     // user of each row, or null: row b is user b
    int64_t users, entries;

    SEQREC_HOST_DEVICE bool given() const { return offsets != nullptr; }

    // The entries of batch row `b`; false where they lie outside the CSR.
    SEQREC_HOST_DEVICE bool find(int64_t b, int64_t& begin, int64_t& end) const {
        begin = end = 0;
        if (!given()) return true;
        const int64_t user = rows == nullptr ? b : rows[b];
        if (user < 0 || user >= users) return false;
        if (offsets[user] < 0 || offsets[user + 1] < offsets[user]) return false;
        if (offsets[user + 1] > entries) return false;
        begin = offsets[user];
        end = offsets[user + 1];
        return true;
    }
};

}  // namespace seqrec
