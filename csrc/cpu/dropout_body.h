// dropout.h's numbers, many at once.  Included inside a namespace, after the Vec.

// What the columns first .. first + count - 1 of a row are multiplied with; they stand somewhere in
// `room` [dropout_room(count)].
//
// `Wide` has 64-bit lanes, of which `low_product` multiplies the low halves: one instruction, both
// halves of the product.  What stands in a high half where a low one is meant does no harm.
static inline const float* dropout_factors(const Dropout& drop, int64_t row, int64_t first,
                                           int64_t count, float* room) {
    constexpr int kWide = sizeof(Wide) / 8, kParts = 8 / kWide;
    constexpr int kDraws = 64;  // from eight counters
    static const uint64_t lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int64_t before = first % 8;
    for (int64_t c = 0; c < before + count; c += kDraws) {
        Wide x[4][kParts];
        uint32_t k0 = static_cast<uint32_t>(drop.seed);
        uint32_t k1 = static_cast<uint32_t>(drop.seed >> 32);
#pragma GCC unroll 8
        for (int part = 0; part < kParts; ++part) {
            __builtin_memcpy(&x[1][part], lanes + part * kWide, sizeof(Wide));
            x[0][part] = Wide{} + static_cast<uint32_t>(row);
            x[1][part] += static_cast<uint64_t>((first + c) / 8);
            x[2][part] = Wide{};
            x[3][part] = Wide{} + drop.stream;
        }
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
            for (int part = 0; part < kParts; ++part) {
                const Wide a = low_product(x[0][part], Wide{} + 0xD2511F53u);
                const Wide b = low_product(x[2][part], Wide{} + 0xCD9E8D57u);
                x[0][part] = (b >> 32) ^ x[1][part] ^ k0;
                x[1][part] = b;
                x[2][part] = (a >> 32) ^ x[3][part] ^ k1;
                x[3][part] = a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        // the words of each counter one after the other: its numbers in their order
#pragma GCC unroll 8
        for (int part = 0; part < kParts; ++part) {
            Wide low, high;
            interleave((x[0][part] & 0xFFFFFFFFu) | x[1][part] << 32,
                       (x[2][part] & 0xFFFFFFFFu) | x[3][part] << 32, low, high);
            float* out = room + c + 8 * kWide * part;
            where_kept(low, drop.dropped, drop.scale, out);
            where_kept(high, drop.dropped, drop.scale, out + 4 * kWide);
        }
    }
    return room + before;
}
