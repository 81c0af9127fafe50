// The only threading of the extension: a pool of workers that help the calling thread through a list of
// units.
#pragma once

#include <cstdint>

namespace colbert_fast {

// Calls run(context, unit, worker) once for every unit in [0, units), on at most `threads` threads, the
// calling one among them. `worker` is in [0, threads) and names the thread for the length of this call. Units
// are handed out in order, to whoever is free. `run` must not throw.
//
// No thread starts before the first call that wants one, and none is ever joined: idle workers sleep, and end
// with the process. A forked child starts its own pool. While one Python thread uses the pool, a call from
// another runs by itself. The pool has as many workers as the largest call so far had use for. If the system
// refuses a thread, the work is done by those there are.
void parallel_for(int64_t units, int threads, void (*run)(void* context, int64_t unit, int worker),
                  void* context);

// Threads this process has started so far, for `colbert-fast info` and the tests.
int pool_size();

}  // namespace colbert_fast
