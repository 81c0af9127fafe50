// Runs a list of tasks on the threads of a workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "host/threads.h"
#include "host/workspace.h"

namespace colbert_fast {

// Calls kernel(job, task, scratch) once for every task. `scratch` belongs to the thread that does the task.
template <typename Job, typename Task>
void run_tasks(const Job& job, const std::vector<Task>& tasks,
               void (*kernel)(const Job&, const Task&, Scratch&), Workspace& workspace,
               Interrupt& interrupt) {
  struct Context {
    const Job* job;
    const Task* tasks;
    void (*kernel)(const Job&, const Task&, Scratch&);
    Workspace* workspace;
  } context = {&job, tasks.data(), kernel, &workspace};
  const auto run = [](void* opaque, int64_t task, int worker) {
    const Context& c = *static_cast<Context*>(opaque);
    c.kernel(*c.job, c.tasks[task], (*c.workspace)[worker]);
  };
  parallel_for(static_cast<int64_t>(tasks.size()), workspace.threads(), run, &context, interrupt);
}

}  // namespace colbert_fast
