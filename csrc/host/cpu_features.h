// Which instructions this CPU has, and which registers its operating system saves.
#pragma once

namespace colbert_fast {

struct Features {
  bool intel;
  bool avx2, fma, f16c, avx_vnni;
  bool avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx512bf16;
  bool amx_tile, amx_bf16, amx_int8;
  bool dotprod, bf16, i8mm;       // AArch64
  bool os_ymm, os_zmm, os_tiles;  // the system saves these registers when it switches threads (XCR0)
};

const Features& features();

// The reason why a tier for x86-64, or for AArch64, was not built here.
const char* not_x86_64();
const char* not_aarch64();

}  // namespace colbert_fast
