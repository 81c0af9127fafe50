// What this CPU, and the operating system on it, can run.
#pragma once

namespace colbert_fast {

struct Features {
  bool intel;
  bool avx2, fma, f16c, avx_vnni;
  bool avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx512bf16;
  bool amx_tile, amx_bf16, amx_int8;
  bool dotprod, bf16, i8mm;       // of AArch64
  bool os_ymm, os_zmm, os_tiles;  // the OS saves these registers on a context switch (XCR0)
};

const Features& features();

// Why a tier for the other processors is absent.
const char* not_x86_64();
const char* not_aarch64();

}  // namespace colbert_fast
