// Compiling a region of a file for an instruction set that the rest of the library does not assume.
//
// SEQREC_BEGIN_TARGET("avx2,fma") ... SEQREC_END_TARGET.  Everything in between needs internal
// linkage: an inline function that other files also hold could be the copy the linker keeps.

#pragma once

#define SEQREC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SEQREC_BEGIN_TARGET(features) \
    SEQREC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SEQREC_END_TARGET SEQREC_PRAGMA(clang attribute pop)
#else
#define SEQREC_BEGIN_TARGET(features) \
    SEQREC_PRAGMA(GCC push_options) SEQREC_PRAGMA(GCC target(features))
#define SEQREC_END_TARGET SEQREC_PRAGMA(GCC pop_options)
#endif
