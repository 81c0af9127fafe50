// Whether this process may use AMX: what the CPU has, what the kernel offers, and what it grants.
#pragma once

#include "target.h"

// AMX is built where the compiler knows it, and only for Linux, whose way of granting it is known here.
#define CF_AMX 0
#if CF_X86_64 && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#undef CF_AMX
#define CF_AMX 1
#endif
#endif

namespace colbert_fast {

// Null, or the reason why this machine has no AMX for us. Asks for nothing.
const char* amx_unsupported();

// Asks the kernel for the tile registers, for this process and its children, once it has to be. Null: they
// are ours for good. Else the reason; another call asks again. Any thread may call it.
const char* amx_refused();

}  // namespace colbert_fast
