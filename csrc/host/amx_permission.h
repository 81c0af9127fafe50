// Whether this process may use AMX: the CPU must have it, and the kernel must offer it and grant it.
#pragma once

#include "target.h"

// AMX is built if the compiler knows it, and only for Linux: this file knows how Linux grants AMX. GCC and
// Clang have headers of different names.
#define CF_AMX 0
#if CF_NEW_X86_64 && defined(__linux__)
#if __has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>)
#undef CF_AMX
#define CF_AMX 1
#endif
#endif

namespace colbert_fast {

// Null, or the reason why this process cannot have AMX. This function does not ask the kernel to grant it.
const char* amx_unsupported();

// Asks the kernel to grant the tile registers to this process and its children, unless it has done so before.
// Null if the kernel granted them: it never takes them back. Otherwise the reason why not, and the next call
// asks again. Any thread may call this function.
const char* amx_refused();

}  // namespace colbert_fast
