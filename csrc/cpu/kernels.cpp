// Which version of the kernels runs.

#include "kernels.h"

#include <atomic>
#include <cstring>
#include <string>

namespace seqrec::cpu {

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const BFloat16Kernels kAvx512BFloat16;
#endif

namespace {

// Best first.  The compiler's runtime also asks whether the operating system saves the registers.
struct Versions {
    const Kernels* list[4];
    int count = 0;
    std::string names;

    Versions() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
        if (avx512 && __builtin_cpu_supports("avx512bf16")) {
            static Kernels with_pairs = kAvx512;
            with_pairs.name = "avx512_bf16";
            with_pairs.bfloat16 = &kAvx512BFloat16;
            offer(with_pairs);
        }
        if (avx512) offer(kAvx512);
        if (avx2) offer(kAvx2);
#endif
        offer(kPortable);
    }

    void offer(const Kernels& one) {
        list[count++] = &one;
        names += (names.empty() ? "" : ",") + std::string(one.name);
    }
};

const Versions& versions() {
    static const Versions known;
    return known;
}

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* choice = forced.load(std::memory_order_relaxed);
    return choice != nullptr ? *choice : *versions().list[0];
}

bool force_kernels(const char* name) {
    if (*name == '\0') {
        forced = nullptr;
        return true;
    }
    for (int i = 0; i < versions().count; ++i) {
        const Kernels* one = versions().list[i];
        if (std::strcmp(one->name, name) == 0) {
            forced = one;
            return true;
        }
    }
    return false;
}

const char* available_kernels() { return versions().names.c_str(); }

}  // namespace seqrec::cpu
