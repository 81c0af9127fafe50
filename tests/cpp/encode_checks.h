// Checks of the encoder, for kernels.cpp.
#pragma once

// Checks that slack and norms are upper bounds, in double, for all bits and dtypes, and that the codes do not
// depend on the number of threads, at most `threads`.
void check_encode(int threads);
