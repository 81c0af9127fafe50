#include "checks.h"

#include <cstdio>

std::string g_case;
int64_t g_checks = 0;

void check(bool passed, const char* what) {
  ++g_checks;
  if (passed) return;
  std::fprintf(stderr, "kernels: %s differs: %s\n", what, g_case.c_str());
  std::exit(1);
}
