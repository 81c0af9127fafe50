// Target regions: parts of a file that are compiled for an instruction set which the rest of the extension
// does not assume. CF_TARGET_BEGIN opens a region and CF_TARGET_END closes it.
//
// Compiler flags for a whole file would also compile the inline functions of shared headers for that
// instruction set. The linker keeps one copy of such a function, and if it kept an AVX copy, an older CPU
// would run it and crash. Outside a region everything stays on the baseline. So every system header must be
// included before the region opens: this file includes the system headers that tiers need. An attribute at
// each function would not be enough, because lambdas do not inherit it. MSVC compiles every intrinsic in
// every file, so it needs no region.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#define CF_X86_64 1
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of uninitialised variables in its own header (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#else
#define CF_X86_64 0
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#define CF_AARCH64 1
#include <arm_neon.h>
#else
#define CF_AARCH64 0
#endif

// Whether arm_neon.h declares the dot products without a flag on the command line.
#if CF_AARCH64 && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 17)
#define CF_AARCH64_DOT 1
#else
#define CF_AARCH64_DOT 0
#endif

// Whether the compiler may know AVX-VNNI, AVX512-BF16 and AMX. A test defines CF_OLD_COMPILER.
#if CF_X86_64 && !defined(CF_OLD_COMPILER)
#define CF_NEW_X86_64 1
#else
#define CF_NEW_X86_64 0
#endif

// Whether immintrin.h declares AVX-VNNI. GCC 11 and Clang 12, the first that do, have a header of this name.
// Visual Studio 2022 does too, but without such a header.
#if CF_NEW_X86_64 && (__has_include(<avxvnniintrin.h>) || (!defined(__clang__) && _MSC_VER >= 1930))
#define CF_AVX_VNNI 1
#else
#define CF_AVX_VNNI 0
#endif

// Whether immintrin.h declares AVX512-BF16. GCC 10 and Clang 9, the first that do, have a header of this
// name.
#if CF_NEW_X86_64 && (__has_include(<avx512bf16intrin.h>) || (!defined(__clang__) && _MSC_VER >= 1930))
#define CF_AVX512_BF16 1
#else
#define CF_AVX512_BF16 0
#endif

#define CF_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define CF_TARGET_BEGIN(isa) \
  CF_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define CF_TARGET_END CF_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define CF_TARGET_BEGIN(isa) CF_PRAGMA(GCC push_options) CF_PRAGMA(GCC target(isa))
#define CF_TARGET_END CF_PRAGMA(GCC pop_options)
#else
#define CF_TARGET_BEGIN(isa)
#define CF_TARGET_END
#endif

// A region that GCC does not schedule before it has allocated registers. Its scheduler begins the loop of
// tile() with the loads of the elements of all rows: with the tile of NEON that is 34 registers, and
// accumulators spill.
#if defined(__GNUC__) && !defined(__clang__)
#define CF_IN_PROGRAM_ORDER_BEGIN CF_PRAGMA(GCC push_options) CF_PRAGMA(GCC optimize("no-schedule-insns"))
#define CF_IN_PROGRAM_ORDER_END CF_PRAGMA(GCC pop_options)
#else
#define CF_IN_PROGRAM_ORDER_BEGIN
#define CF_IN_PROGRAM_ORDER_END
#endif

#if defined(__clang__)
#define CF_UNROLL CF_PRAGMA(unroll)
#elif defined(__GNUC__)
#define CF_UNROLL CF_PRAGMA(GCC unroll 16)
#else
#define CF_UNROLL
#endif

#if defined(__GNUC__) || defined(__clang__)
#define CF_ALWAYS_INLINE inline __attribute__((always_inline))
#define CF_NEVER_INLINE __attribute__((noinline))
#else
#define CF_ALWAYS_INLINE __forceinline
#define CF_NEVER_INLINE __declspec(noinline)
#endif
