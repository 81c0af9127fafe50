"""The documents' sections: each is a function that writes one run as Markdown, or nothing if the run has no such data.

Figures that belong to a cell's number stand below it in small print, which keeps the tables narrow enough for GitHub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.model import Quantiles, Result, Run, Workload, best, digits, tilde

Render = Callable[[Run, Workload, Result], str]
# The workloads of the short table, and the peer that has a column of its own there.
SUMMARY = (
    "rerank-text-float32",
    "rerank-text-bfloat16",
    "rerank-text-int8",
    "ragged-packed-float32",
    "pages-bfloat16",
    "train-inbatch-float32",
    "gpu-rerank-10k-bfloat16",
    "gpu-train-256-bfloat16",
)
MAIN_PEER = "sentence-transformers"


def cell(text: str, small: str = "") -> str:
    return (f"{text}<br><sub>{small}</sub>" if small else text).replace("|", "\\|")


def _ratio(result: Result, ours: Result | None) -> str:
    """A ratio, in bold if another library's time is less than ours."""
    text = result.ratio(ours)
    return f"**{text}, ours slower**" if result.beats(ours) and not result.ours else text


def table(header: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table, its first columns, which are names, to the left and the others to the right."""
    lines = [header, [*["---"] * names, *["---:"] * (len(header) - names)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def details(summary: str, body: str) -> str:
    # The attribute is for the built documentation; GitHub needs none.
    return f'<details markdown="1"><summary>{summary}</summary>\n\n{body}\n\n</details>'


def _heading(run: Run) -> str:
    machine = run.machine
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    parts += [str(machine["gpu"])] if machine.get("gpu") else []
    parts += ["**noisy machine**"] if machine.get("noisy") else []
    command = f"`{run.command}` ({run.profile} profile, seed {run.seed})"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version)
    first = f"**{machine['name']}**: {', '.join(parts)}; {run.revision}, {run.date[:10]}; {command}."
    return f"{first}<br><sub>{versions}</sub>"


def summary(runs: Sequence[Run]) -> str:
    """The short table: what most users wait for, on every machine."""
    rows = []
    for run in runs:
        where = run.machine["name"]
        for workload in run.ran():
            ours = workload.best("ours")
            if workload.name not in SUMMARY or ours is None:
                continue
            others = (result for result in workload.results if result.family != MAIN_PEER)
            torch, other = (
                cell(_ratio(rival, ours), rival.contender) if rival else "-"
                for rival in (workload.best("torch"), best(others, "peer"))
            )
            name = cell(workload.name, f"{workload.setting}; {where}")
            rows.append([name, cell(ours.ms, ours.variant), torch, _peer_cell(workload, MAIN_PEER, ours), other])
    header = ["workload", "ours, ms", "best torch", MAIN_PEER, "best other library"]
    return f"{NOTES['summary']}\n\n{table(header, rows)}" if rows else ""


def scores(run: Run) -> str:
    """The main table: ours against the best torch path and every peer."""
    results = [result for workload in run.ran() for result in workload.results]
    peers = list(dict.fromkeys(result.family for result in results if result.kind == "peer"))
    header = ["workload", "ours, ms", "best torch", *peers, "of the limit", "our error"]
    blocks = [_heading(run)]
    if results:
        blocks.append(table(header, (_scores_row(run, workload, peers) for workload in run.ran())))
    if "cuda" in run.machine:
        blocks.append(
            "Times of the device, with launches done ahead and the documents not in its cache. The memory limit is "
            "the rate of a device-to-device copy, and the peak is the rate of a matrix product of the same type."
        )
    if any(result.noisy for result in results):
        blocks.append("`~` marks a noisy figure: its rounds, or the rounds of ours behind a ratio, spread too far.")
    return "\n\n".join([*blocks, *_skipped(run)])


def mixed(run: Run) -> str:
    """The median and p90 of ours and of others, right after something else and beside it."""
    peers = list(dict.fromkeys(result.family for found in run.mixed() for result in found.results if not result.ours))
    header = ["moment", "documents", "ours, ms", *(f"{peer}, ms" for peer in peers)]
    rows = []
    for found in run.mixed():
        results = [found.best("ours"), *(_fastest(found, peer) for peer in peers)]
        times = [f"{digits(1e3 * r.p50)} ({digits(1e3 * r.seconds['p90'])})" if r else "-" for r in results]
        rows.append([found.moment, found.shape.split(",")[0].partition(" x ")[2], *times])
    return f"{_heading(run)}\n\n{table(header, rows)}" if rows else ""


def _fastest(workload: Workload, family: str) -> Result | None:
    """The fastest correct path of a library."""
    right = [result for result in workload.results if result.family == family and not result.wrong]
    return min(right, key=lambda result: result.p50, default=None)


def _skipped(run: Run) -> list[str]:
    """Who was left out, why, and where; of a workload without any result, everyone."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for workload in (found for found in run.workloads if not found.moment):
        for entry in workload.skipped:
            who = entry["contender"] if workload.results else "everyone"
            reason = " ".join(entry["reason"].replace("<", "&lt;").split())
            places.setdefault((reason, who), {})[workload.name] = None
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, who), where in places.items():
        together.setdefault((reason, tuple(where)), []).append(who)
    ran = tuple(workload.name for workload in run.ran())
    lines = []
    for (reason, names), whom in together.items():
        lines.append(f"- {'; '.join(whom)}: {reason} ({'every workload' if names == ran else ', '.join(names)})")
    return [details(f"Skipped on {run.machine['name']}, and why", "\n".join(lines))] if lines else []


def _scores_row(run: Run, workload: Workload, peers: Sequence[str]) -> list[str]:
    ours, torch = workload.best("ours"), workload.best("torch")
    row = [cell(f"**{workload.name}**", workload.setting)]
    mine = [result for result in workload.results if result.ours]
    if ours is not None:
        row.append(cell(ours.ms, f"{ours.variant}, {ours.spread}"))
    else:
        row.append(cell(min(mine, key=lambda result: result.p50).error) if mine else "not run")
    row.append(cell(_ratio(torch, ours), f"{torch.ms} ms, {torch.contender}") if torch else "-")
    row += [_peer_cell(workload, peer, ours) for peer in peers]
    reached, bound, share = run.rate(workload, ours, workload.tiers) if ours else ("-", "-", "-")
    row.append(cell(share, f"{bound}, {reached}") if share != "-" else "-")
    return [*row, ours.error if ours else "-"]


def _peer_cell(workload: Workload, peer: str, ours: Result | None) -> str:
    """The best correct path of a library, or else its fastest wrong one, shown as wrong."""
    results = [result for result in workload.results if result.kind == "peer" and result.family == peer]
    if (right := best(results, "peer")) is not None:
        return cell(_ratio(right, ours), f"{right.ms} ms")
    if results:
        wrong = min(results, key=lambda result: result.p50)
        return cell(wrong.error, f"{wrong.ratio(ours)}, {wrong.ms} ms")
    return "skipped" if any(entry["contender"].split()[0] == peer for entry in workload.skipped) else "-"


def _backend(_: Run, __: Workload, result: Result) -> str:
    backend = str(result.backend)
    return result.contender if backend in result.contender else f"{result.contender} (chose {backend})"


def _against(rival: Result | None, result: Result) -> str:
    return "-" if rival is None or result.wrong else _ratio(rival, result)


def _memory_over_ours(_: Run, workload: Workload, result: Result) -> str:
    ours = workload.best("ours")
    if ours is None or not ours.peak_memory or not result.peak_memory:
        return "-"
    return f"{digits(result.peak_memory / ours.peak_memory)}x"


def _own_rate(run: Run, workload: Workload, result: Result) -> tuple[str, str, str]:
    """Against the peak of a backend's own instructions, if they have one."""
    own = result.backend in run.limits.get("flops_per_s", {})
    return run.rate(workload, result, [str(result.backend)] if own else workload.tiers)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _milliseconds(value: float | Quantiles | None) -> str:
    """A time that is measured once, or the median of one that is measured beside the main one."""
    seconds = value["p50"] if isinstance(value, dict) else value
    return "-" if seconds is None else digits(1e3 * seconds)


# How the columns of the tables with a line for each result are written, by their headers.
CELLS: dict[str, Render] = {
    "contender": lambda _, __, result: result.contender,
    "ms": lambda _, __, result: result.ms,
    "p20-p80": lambda _, __, result: result.spread,
    "error": lambda _, __, result: result.error,
    "Kendall tau": lambda _, __, result: _number(result.kendall_tau, ".4g"),
    "best torch": lambda _, workload, result: _against(workload.best("torch"), result),
    "best peer": lambda _, workload, result: _against(workload.best("peer"), result),
    "time over ours": lambda _, workload, result: _ratio(result, workload.best("ours")),
    "rate": lambda *where: _own_rate(*where)[0],
    "of its limit": lambda *where: _own_rate(*where)[2],
    "MB": lambda _, __, result: digits((result.peak_memory or 0) / 1e6),
    "over ours": _memory_over_ours,
    "packing": lambda _, __, result: _milliseconds(result.packing),
    "first call": lambda _, __, result: _milliseconds(result.first_call),
    "device": lambda _, __, result: result.ms,
    "host": lambda _, __, result: _milliseconds(result.host),
    "wall": lambda _, __, result: _milliseconds(result.wall),
    "graph": lambda _, __, result: _milliseconds(result.graph),
    "gradient error": lambda _, __, result: _number(result.gradient_error, ".1e"),
    "pairs/s": lambda _, __, result: tilde(result) + digits((result.pairs or 0) / result.p50),
}


def _rows(
    run: Run, workload: Workload, columns: Sequence[str], keep: Callable[[Result], object], contender: Render
) -> list[list[str]]:
    """A line for each kept result, the fastest first; the workload's name stands in the first line."""
    kept = sorted(filter(keep, workload.results), key=lambda result: result.p50)
    renders = [contender, *(CELLS[name] for name in columns)]
    cells = [[cell(render(run, workload, result)) for render in renders] for result in kept]
    return [["" if number else workload.name, *line] for number, line in enumerate(cells)]


def _long(
    title: str, keep: Callable[[Result], object], *columns: str, contender: Render = CELLS["contender"]
) -> Callable[[Run], str]:
    """A section with one line for each kept result, collapsed."""

    def section(run: Run) -> str:
        quiet = (found for found in run.workloads if not found.moment)
        rows = [line for workload in quiet for line in _rows(run, workload, columns, keep, contender)]
        body = table(["workload", "contender", *columns], rows, names=2)
        return details(f"{title} on {run.machine['name']}", body) if rows else ""

    return section


def encoding(run: Run) -> str:
    """Text in, scores out, with the encoder."""
    columns = ("ms", "pairs/s", "time over ours", "error")
    rows = [
        [workload.name, *line[1:]]
        for workload in run.encoders()
        for line in _rows(run, workload, columns, bool, CELLS["contender"])
    ]
    body = table(["workload", "contender", *columns], rows, names=2)
    return f"{_heading(run)}\n\n{body}" if rows else ""


# What stands above a section's tables, once for all machines.
NOTES = {
    "summary": (
        "A ratio is a contender's median time over ours: 6.0x takes six times as long. Of several paths of torch, and "
        "of the other libraries, the fastest correct one is shown. `1 x 1000, 32 x 300` is one query of 32 tokens with "
        "1000 documents of 300 tokens each. Cold documents come from memory, warm ones from the cache."
    ),
    "scores": (
        "`1 x 1000, 32 x 300` is one query of 32 tokens with 1000 documents of 300 tokens each. "
        "A ratio is a contender's median time over ours: 6.0x takes six times as long. Ours is a call that names no "
        "backend. Of several torch paths the fastest correct one is shown. The limit is the time that the hardware "
        "needs at the memory bandwidth or the peak measured in the same run, whichever is longer. The peak is that of "
        "int8 where the CPU multiplies int8, because documents of any type are screened in int8. The error is the "
        "largest relative one against float64."
    ),
    "mixed": (
        "One query of 32 tokens with documents of 180 tokens, float32, dim 128. The median of the scoring call alone, "
        "and in brackets what nine of ten calls do not exceed. Nothing settles between the calls. An encoder's forward "
        "also pushes the documents out of the caches. Of several paths of a library the fastest correct one is shown."
    ),
    "cuda": (
        "Milliseconds, medians. The device's time is between two events around a call, with its launches done ahead "
        "and the cache filled with other things. The host's time is until the call returns. Wall is the time from an "
        "idle device until the device is done. Graph is the device's time of a replayed CUDA graph."
    ),
}
SECTIONS: dict[str, Callable[[Run], str]] = {
    "scores": scores,
    "mixed": mixed,
    "backends": _long(
        "Every backend of ours",
        lambda result: result.ours,
        *("ms", "p20-p80", "best torch", "best peer", "rate", "of its limit", "error", "Kendall tau"),
        contender=_backend,
    ),
    "contenders": _long(
        "Every other contender",
        lambda result: not result.ours,
        *("ms", "p20-p80", "time over ours", "error", "Kendall tau"),
    ),
    "memory": _long("Peak memory", lambda result: result.peak_memory is not None, "MB", "over ours"),
    "startup": _long(
        "Packing and first call, in milliseconds,",
        lambda result: result.packing is not None or result.first_call is not None,
        *("packing", "first call"),
    ),
    "cuda": _long(
        "Device, host and graph",
        lambda result: result.host,
        *("device", "host", "wall", "graph", "gradient error"),
    ),
    "encoding": encoding,
}
