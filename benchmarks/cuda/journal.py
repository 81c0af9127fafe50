"""The journal of a run: one JSON object a line, written at once, so that no end of a process loses what was measured.

======== ================================================================================================
event    fields
======== ================================================================================================
run      machine, limits, profile: what the report says of the run
workload the fields of ``recorder.workload_entry``
begin    workload, contender, doing, limit: seconds after which a process that writes nothing more is stuck
result   workload, result, seconds, host, wall, facts
graph    workload, contender, seconds; or reason, where it could not be captured
skip     workload, contender, reason
crash    workload, contender, doing, reason: as skip, of a process that ended
done     stage
end      state: of the device
======== ================================================================================================
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.recorder import Recorder


class Journal:
    """A file to append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one line, and let it leave this process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Everything so far, but for a line that was cut off."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def unfinished(self) -> dict[str, Any] | None:
        """What was begun last, if nothing came of it. Reads no more than the end of the file."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 2**12))
            last = file.read().splitlines()[-1:]
        try:
            line: dict[str, Any] = json.loads(last[0]) if last else {}
        except ValueError:
            return None
        return line if line.get("event") == "begin" else None

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def age(self) -> float:
        """Seconds since something was written."""
        return time.time() - self.path.stat().st_mtime if self.path.is_file() else 0.0

    def done(self) -> set[str]:
        """The stages that are complete."""
        return {line["stage"] for line in self.lines() if line["event"] == "done"}

    def crashed(self) -> set[tuple[str, str, str]]:
        """Workload, contender, and what it was doing when its process ended."""
        return {
            (line["workload"], line["contender"], line["doing"]) for line in self.lines() if line["event"] == "crash"
        }

    def replay(self, recorder: Recorder) -> dict[str, Any]:
        """Tell a recorder everything, and return the fields of the run."""
        run: dict[str, Any] = {}
        for line in self.lines():
            fields = {name: value for name, value in line.items() if name != "event"}
            if line["event"] == "run":
                run = fields
            elif line["event"] == "workload":
                recorder.open(fields)
            elif line["event"] in ("skip", "crash"):
                recorder.skip(line["workload"], line["contender"], line["reason"])
            elif line["event"] == "result":
                workload, name = line["workload"], line["result"]["contender"]
                recorder.add(workload, line["result"], line["seconds"], **line["facts"])
                for what in ("host", "wall"):
                    recorder.add_also(workload, name, what, line[what])
            elif line["event"] == "graph" and "reason" in line:
                recorder.note(line["workload"], line["contender"], no_graph=line["reason"])
            elif line["event"] == "graph":
                recorder.add_also(line["workload"], line["contender"], "graph", line["seconds"])
            elif line["event"] == "end":
                run["machine"]["cuda"]["state_at_end"] = line["state"]
        return run
