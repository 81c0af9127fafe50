// The gradients of scores.
#pragma once

#include <cstdint>

#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

// Adds to the gradient of one side, [rows][dim], which the caller has filled with zeros. grad_scores is
// [pairs], argmax is [pairs][problem.max_lq]. May throw std::bad_alloc, before any work is done. After an
// interrupt the gradient is of no use.
void backward(const Tier& tier, const Problem& problem, int threads, bool to_queries,
              const float* grad_scores, const int32_t* argmax, float* grad, Interrupt& interrupt);

}  // namespace colbert_fast
