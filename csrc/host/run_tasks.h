// Runs a list of tasks on the threads of a workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "host/threads.h"
#include "host/workspace.h"

namespace colbert_fast {

// Calls kernel(job, task, scratch) once for every task. `scratch` belongs to the thread that does the task. A
// job and its tasks are a ScoreJob and Tasks, or a BackwardJob and BackwardTasks.
template <typename AnyJob, typename AnyTask>
void run_tasks(const AnyJob& job, const std::vector<AnyTask>& tasks,
               void (*kernel)(const AnyJob&, const AnyTask&, Scratch&), Workspace& workspace,
               Interrupt& interrupt) {
  struct Context {
    const AnyJob* job;
    const AnyTask* tasks;
    void (*kernel)(const AnyJob&, const AnyTask&, Scratch&);
    Workspace* workspace;
  } context = {&job, tasks.data(), kernel, &workspace};
  const auto run = [](void* opaque, int64_t task, int worker) {
    const Context& c = *static_cast<Context*>(opaque);
    c.kernel(*c.job, c.tasks[task], (*c.workspace)[worker]);
  };
  parallel_for(static_cast<int64_t>(tasks.size()), workspace.threads(), run, &context, interrupt);
}

}  // namespace colbert_fast
