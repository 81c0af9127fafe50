"""The documents' sections: each is a function that writes one run as Markdown, or nothing if the run has no such data.

Figures that belong to a cell's number stand below it in small print, which keeps the tables narrow enough for GitHub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.model import Result, Run, Workload, best, digits, tilde

Render = Callable[[Run, Workload, Result], str]
Column = tuple[str, Render]
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


def _cell(text: str, small: str = "") -> str:
    return (f"{text}<br><sub>{small}</sub>" if small else text).replace("|", "\\|")


def _ratio(result: Result, ours: Result | None) -> str:
    """A ratio, in bold if ours is slower."""
    text = result.ratio(ours)
    return f"**{text}, ours slower**" if result.beats(ours) else text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table, its first columns, which are names, to the left and the others to the right."""
    lines = [header, [*["---"] * names, *["---:"] * (len(header) - names)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _details(summary: str, body: str) -> str:
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
                _cell(_ratio(rival, ours), rival.contender) if rival else "-"
                for rival in (workload.best("torch"), best(others, "peer"))
            )
            name = _cell(workload.name, f"{workload.setting}; {where}")
            rows.append([name, _cell(ours.ms, ours.variant), torch, _peer_cell(workload, MAIN_PEER, ours), other])
    header = ["workload", "ours, ms", "best torch", MAIN_PEER, "best other library"]
    return f"{NOTES['summary']}\n\n{_table(header, rows)}" if rows else ""


def scores(run: Run) -> str:
    """The main table: ours against the best torch path and every peer."""
    results = [result for workload in run.ran() for result in workload.results]
    peers = list(dict.fromkeys(result.family for result in results if result.kind == "peer"))
    header = ["workload", "ours, ms", "best torch", *peers, "of the limit", "our error"]
    blocks = [_heading(run)]
    if results:
        blocks.append(_table(header, (_scores_row(run, workload, peers) for workload in run.ran())))
    if "cuda" in run.machine:
        blocks.append(
            "Times of the device, with launches done ahead and the documents not in its cache. The memory limit is "
            "the rate of a device-to-device copy, and the peak is the rate of a matrix product of the same type."
        )
    if any(result.noisy for result in results):
        blocks.append("`~` marks a noisy figure: its rounds, or the rounds of ours behind a ratio, spread too far.")
    return "\n\n".join([*blocks, *_skipped(run)])


def _skipped(run: Run) -> list[str]:
    """Who was left out, why, and where; of a workload without any result, everyone."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for workload in run.workloads:
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
    return [_details(f"Skipped on {run.machine['name']}, and why", "\n".join(lines))] if lines else []


def _scores_row(run: Run, workload: Workload, peers: Sequence[str]) -> list[str]:
    ours, torch = workload.best("ours"), workload.best("torch")
    row = [_cell(f"**{workload.name}**", workload.setting)]
    mine = [result for result in workload.results if result.ours]
    if ours is not None:
        row.append(_cell(ours.ms, f"{ours.variant}, {ours.spread}"))
    else:
        row.append(_cell(min(mine, key=lambda result: result.p50).error) if mine else "not run")
    row.append(_cell(_ratio(torch, ours), f"{torch.ms} ms, {torch.contender}") if torch else "-")
    row += [_peer_cell(workload, peer, ours) for peer in peers]
    reached, bound, share = run.rate(workload, ours, workload.tiers) if ours else ("-", "-", "-")
    row.append(_cell(share, f"{bound}, {reached}") if share != "-" else "-")
    return [*row, ours.error if ours else "-"]


def _peer_cell(workload: Workload, peer: str, ours: Result | None) -> str:
    """The best correct path of a library, or else its fastest wrong one, shown as wrong."""
    results = [result for result in workload.results if result.kind == "peer" and result.family == peer]
    if (right := best(results, "peer")) is not None:
        return _cell(_ratio(right, ours), f"{right.ms} ms")
    if results:
        wrong = min(results, key=lambda result: result.p50)
        return _cell(wrong.error, f"{wrong.ratio(ours)}, {wrong.ms} ms")
    return "skipped" if any(entry["contender"].split()[0] == peer for entry in workload.skipped) else "-"


def _long(title: str, keep: Callable[[Result], object], columns: Sequence[Column]) -> Callable[[Run], str]:
    """A section with one line per kept result, collapsed; a column gets its cell from the run, workload and result."""

    def section(run: Run) -> str:
        rows = []
        for workload in run.workloads:
            kept = sorted(filter(keep, workload.results), key=lambda result: result.p50)
            for number, result in enumerate(kept):
                cells = [_cell(render(run, workload, result)) for _, render in columns]
                rows.append(["" if number else workload.name, *cells])
        header = ["workload", *[name for name, _ in columns]]
        return _details(f"{title} on {run.machine['name']}", _table(header, rows, names=2)) if rows else ""

    return section


def _against(kind: str) -> Column:
    def against(_: Run, workload: Workload, result: Result) -> str:
        other = workload.best(kind)
        return "-" if other is None or result.wrong else _ratio(other, result)

    return f"best {kind}", against


def _memory_over_ours(_: Run, workload: Workload, result: Result) -> str:
    ours = workload.best("ours")
    if ours is None or not ours.peak_memory or not result.peak_memory:
        return "-"
    return f"{digits(result.peak_memory / ours.peak_memory)}x"


def _backend(_: Run, __: Workload, result: Result) -> str:
    backend = str(result.backend)
    return result.contender if backend in result.contender else f"{result.contender} (chose {backend})"


def _own_rate(run: Run, workload: Workload, result: Result) -> tuple[str, str, str]:
    """Against the peak of a backend's own instructions, if they have one."""
    own = result.backend in run.limits.get("flops_per_s", {})
    return run.rate(workload, result, [str(result.backend)] if own else workload.tiers)


def _milliseconds(what: str) -> Column:
    """A time that is measured once, or the median of one that is measured beside the main one."""

    def render(_: Run, __: Workload, result: Result) -> str:
        found = getattr(result, what)
        seconds = found["p50"] if isinstance(found, dict) else found
        return "-" if seconds is None else digits(1e3 * seconds)

    return what.replace("_", " "), render


def _number(name: str, what: str, form: str) -> Column:
    return name, lambda _, __, result: "-" if getattr(result, what) is None else format(getattr(result, what), form)


_TIME: list[Column] = [("ms", lambda _, __, result: result.ms), ("p20-p80", lambda _, __, result: result.spread)]
_ERROR: Column = ("error", lambda _, __, result: result.error)
_TAU = _number("Kendall tau", "kendall_tau", ".4g")
_CONTENDER: Column = ("contender", lambda _, __, result: result.contender)


def encoding(run: Run) -> str:
    """Text in, scores out, with the encoder."""
    rows = []
    for result in sorted(run.encoding, key=lambda result: (str(result.name), result.p50)):
        ours = best((other for other in run.encoding if other.name == result.name), "ours")
        pairs = tilde(result) + digits((result.pairs or 0) / result.p50)
        rows.append([str(result.name), result.contender, result.ms, pairs, _ratio(result, ours), result.error])
    table = _table(["workload", "contender", "ms", "pairs/s", "time over ours", "error"], rows, names=2)
    return f"{_heading(run)}\n\n{table}" if rows else ""


# What stands above a section's tables, once for all machines.
NOTES = {
    "summary": (
        "A ratio is a contender's median time over ours: 6.0x takes six times as long. Of several paths of torch, and "
        "of the other libraries, the fastest correct one is shown."
    ),
    "scores": (
        "A ratio is that contender's median time over ours: 6.0x takes six times as long. Ours is a call that names no "
        "backend. Of several torch paths the fastest correct one is shown. The limit is the time that the hardware "
        "needs at the memory bandwidth or the peak measured in the same run, whichever is longer. The peak is that of "
        "int8 where the CPU multiplies int8, because documents of any type are screened in int8. The error is the "
        "largest relative one against float64."
    ),
    "cuda": (
        "Milliseconds, medians. The device's time is between two events around a call, with its launches done ahead "
        "and the cache filled with other things. The host's time is until the call returns. Wall is the time from an "
        "idle device until the device is done. Graph is the device's time of a replayed CUDA graph."
    ),
}
SECTIONS: dict[str, Callable[[Run], str]] = {
    "scores": scores,
    "backends": _long(
        "Every backend of ours",
        lambda result: result.ours,
        [
            ("contender", _backend),
            *_TIME,
            _against("torch"),
            _against("peer"),
            ("rate", lambda *where: _own_rate(*where)[0]),
            ("of its limit", lambda *where: _own_rate(*where)[2]),
            _ERROR,
            _TAU,
        ],
    ),
    "contenders": _long(
        "Every other contender",
        lambda result: not result.ours,
        [
            _CONTENDER,
            *_TIME,
            ("time over ours", lambda _, workload, result: _ratio(result, workload.best("ours"))),
            _ERROR,
            _TAU,
        ],
    ),
    "memory": _long(
        "Peak memory",
        lambda result: result.peak_memory is not None,
        [
            _CONTENDER,
            ("MB", lambda _, __, result: digits((result.peak_memory or 0) / 1e6)),
            ("over ours", _memory_over_ours),
        ],
    ),
    "startup": _long(
        "Packing and first call, in milliseconds,",
        lambda result: result.packing is not None or result.first_call is not None,
        [_CONTENDER, _milliseconds("packing"), _milliseconds("first_call")],
    ),
    "cuda": _long(
        "Device, host and graph",
        lambda result: result.host,
        [
            _CONTENDER,
            ("device", lambda _, __, result: result.ms),
            _milliseconds("host"),
            _milliseconds("wall"),
            _milliseconds("graph"),
            _number("gradient error", "gradient_error", ".1e"),
        ],
    ),
    "encoding": encoding,
}
