"""The README's sections: each is a function that writes one run as Markdown, or nothing if the run has no such data.

Figures that belong to a cell's number stand below it in small print, which keeps the tables narrow enough for GitHub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.figures import (
    Entry,
    best,
    digits,
    error,
    family,
    kind,
    loss,
    ms,
    rate,
    ratio,
    revision,
    seconds,
    setting,
    spread,
    tiers,
    tilde,
    variant,
)

Render = Callable[[Entry, Entry, Entry], str]
Column = tuple[str, Render]


def _cell(text: str, small: str = "") -> str:
    return (f"{text}<br><sub>{small}</sub>" if small else text).replace("|", "\\|")


def _ratio_cell(entry: Entry, ours: Entry | None) -> str:
    """A ratio, in bold if ours is slower."""
    text = ratio(entry, ours)
    return f"**{text}, ours slower**" if loss(entry, ours) else text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table, its first columns, which are names, to the left and the others to the right."""
    lines = [header, [*["---"] * names, *["---:"] * (len(header) - names)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _heading(run: Entry) -> str:
    machine = run["machine"]
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    parts += [str(machine["gpu"])] if machine.get("gpu") else []
    parts += ["**noisy machine**"] if machine.get("noisy") else []
    command = f"`{run['command']}` ({run['profile']} profile, seed {run['seed']})"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    first = f"**{machine['name']}**: {', '.join(parts)}; {revision(run)}, {run['date'][:10]}; {command}."
    return f"{first}<br><sub>{versions}</sub>"


def scores(run: Entry) -> str:
    """The main table: ours against the best torch path and every peer."""
    workloads = [workload for workload in run["workloads"] if workload["results"]]
    results = [entry for workload in workloads for entry in workload["results"]]
    peers = list(dict.fromkeys(family(entry["contender"]) for entry in results if kind(entry) == "peer"))
    header = ["workload", "ours, ms", "best torch", *peers, "of the limit", "our error"]
    blocks = [_heading(run)]
    if workloads:
        blocks.append(_table(header, (_scores_row(run, workload, peers) for workload in workloads)))
    if "cuda" in run["machine"]:
        blocks.append(
            "Times of the device, with launches done ahead and the documents not in its cache; the memory limit is "
            "that of a device-to-device copy, and the peak that of a matrix product of the same type."
        )
    if any(entry.get("noisy") for entry in results):
        blocks.append("`~` marks a noisy figure: its rounds, or those of ours behind a ratio, spread too far.")
    return "\n\n".join([*blocks, *_skipped(run)])


def _skipped(run: Entry) -> list[str]:
    """Who was left out, why, and where; of a workload without any result, everyone."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for workload in run["workloads"]:
        for entry in workload["skipped"]:
            who = entry["contender"] if workload["results"] else "everyone"
            reason = " ".join(entry["reason"].replace("<", "&lt;").split())
            places.setdefault((reason, who), {})[workload["name"]] = None
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, who), where in places.items():
        together.setdefault((reason, tuple(where)), []).append(who)
    ran = tuple(workload["name"] for workload in run["workloads"] if workload["results"])
    lines = []
    for (reason, names), whom in together.items():
        lines.append(f"- {'; '.join(whom)}: {reason} ({'every workload' if names == ran else ', '.join(names)})")
    return [_details(f"Skipped on {run['machine']['name']}, and why", "\n".join(lines))] if lines else []


def _scores_row(run: Entry, workload: Entry, peers: Sequence[str]) -> list[str]:
    results = workload["results"]
    ours, torch = best(results, "ours"), best(results, "torch")
    row = [_cell(f"**{workload['name']}**", setting(workload))]
    mine = [entry for entry in results if entry["ours"]]
    if ours is not None:
        row.append(_cell(ms(ours), f"{variant(ours)}, {spread(ours)}"))
    else:
        row.append(_cell(error(min(mine, key=seconds))) if mine else "not run")
    row.append(_cell(_ratio_cell(torch, ours), f"{ms(torch)} ms, {torch['contender']}") if torch else "-")
    row += [_peer_cell(workload, peer, ours) for peer in peers]
    reached, bound, share = rate(run, workload, ours, tiers(workload)) if ours else ("-", "-", "-")
    row.append(_cell(share, f"{bound}, {reached}") if share != "-" else "-")
    return [*row, error(ours) if ours else "-"]


def _peer_cell(workload: Entry, peer: str, ours: Entry | None) -> str:
    """The best correct path of a library, or else its fastest wrong one, shown as wrong."""
    entries = [e for e in workload["results"] if kind(e) == "peer" and family(e["contender"]) == peer]
    if (right := best(entries, "peer")) is not None:
        return _cell(_ratio_cell(right, ours), f"{ms(right)} ms")
    if entries:
        wrong = min(entries, key=seconds)
        return _cell(error(wrong), f"{ratio(wrong, ours)}, {ms(wrong)} ms")
    return "skipped" if any(family(entry["contender"]) == peer for entry in workload["skipped"]) else "-"


def _long(title: str, keep: Callable[[Entry], object], columns: Sequence[Column]) -> Callable[[Entry], str]:
    """A section with one line per kept result, collapsed; a column gets its cell from the run, workload and result."""

    def section(run: Entry) -> str:
        rows = []
        for workload in run["workloads"]:
            kept = sorted(filter(keep, workload["results"]), key=seconds)
            for number, entry in enumerate(kept):
                cells = [_cell(render(run, workload, entry)) for _, render in columns]
                rows.append(["" if number else workload["name"], *cells])
        header = ["workload", *[name for name, _ in columns]]
        return _details(f"{title} on {run['machine']['name']}", _table(header, rows, names=2)) if rows else ""

    return section


def _against(of: str) -> Column:
    def against(_: Entry, workload: Entry, entry: Entry) -> str:
        other = best(workload["results"], of)
        return "-" if other is None or entry.get("wrong") else _ratio_cell(other, entry)

    return f"best {of}", against


def _over_ours(field: str | None = None) -> Render:
    def over(_: Entry, workload: Entry, entry: Entry) -> str:
        ours = best(workload["results"], "ours")
        if field is None:
            return _ratio_cell(entry, ours)
        return f"{digits(entry[field] / ours[field])}x" if ours and ours.get(field) and entry[field] else "-"

    return over


def _backend(run: Entry, workload: Entry, entry: Entry) -> str:
    name, backend = entry["contender"], entry["backend"]
    return name if backend in name else f"{name} (chose {backend})"


def _own_rate(run: Entry, workload: Entry, entry: Entry) -> tuple[str, str, str]:
    """Against the peak of a backend's own instructions, if they have one."""
    peaks = run["limits"].get("flops_per_s", {})
    return rate(run, workload, entry, [entry["backend"]] if entry["backend"] in peaks else tiers(workload))


def _once(field: str) -> Render:
    return lambda run, workload, entry: "-" if entry.get(field) is None else digits(1e3 * entry[field])


def _median(what: str) -> Render:
    return lambda run, workload, entry: digits(1e3 * entry[what]["p50"]) if entry.get(what) else "-"


def _gradient(run: Entry, workload: Entry, entry: Entry) -> str:
    return "-" if entry.get("gradient_error") is None else f"{entry['gradient_error']:.1e}"


def _tau(run: Entry, workload: Entry, entry: Entry) -> str:
    return "-" if entry.get("kendall_tau") is None else f"{entry['kendall_tau']:.4g}"


_TIME: list[Column] = [("ms", lambda r, w, e: ms(e)), ("p20-p80", lambda r, w, e: spread(e))]
_QUALITY: list[Column] = [("error", lambda r, w, e: error(e)), ("Kendall tau", _tau)]
_CONTENDER: Column = ("contender", lambda r, w, e: e["contender"])


def encoding(run: Entry) -> str:
    """Text in, scores out, with the encoder."""
    rows = []
    entries = run.get("encoding", [])
    for entry in sorted(entries, key=lambda e: (e["name"], seconds(e))):
        ours = best((other for other in entries if other["name"] == entry["name"]), "ours")
        pairs = tilde(entry) + digits(entry["pairs"] / seconds(entry))
        rows.append([entry["name"], entry["contender"], ms(entry), pairs, _ratio_cell(entry, ours), error(entry)])
    table = _table(["workload", "contender", "ms", "pairs/s", "time over ours", "error"], rows, names=2)
    return f"{_heading(run)}\n\n{table}" if rows else ""


# What stands above a section's tables, once for all machines.
NOTES = {
    "scores": (
        "A ratio is that contender's median time over ours: 6.0x takes six times as long. Ours is a call that names no "
        "backend; of several torch paths the fastest correct one is shown. The limit is the time the hardware needs at "
        "the memory bandwidth or the peak measured in the same run, whichever is longer: that of int8 where the CPU "
        "multiplies it, for documents of any type are screened in int8. The error is the largest relative one against "
        "float64."
    ),
    "cuda": (
        "Milliseconds, medians. The device's time is between two events around a call, with its launches done ahead "
        "and the cache filled with other things; the host's is until the call returns; wall is the time from an idle "
        "device until it is done; graph is the device's time of a replayed CUDA graph."
    ),
}
SECTIONS: dict[str, Callable[[Entry], str]] = {
    "scores": scores,
    "backends": _long(
        "Every backend of ours",
        lambda e: e["ours"],
        [
            ("contender", _backend),
            *_TIME,
            _against("torch"),
            _against("peer"),
            ("rate", lambda r, w, e: _own_rate(r, w, e)[0]),
            ("of its limit", lambda r, w, e: _own_rate(r, w, e)[2]),
            *_QUALITY,
        ],
    ),
    "contenders": _long(
        "Every other contender",
        lambda e: not e["ours"],
        [_CONTENDER, *_TIME, ("time over ours", _over_ours()), *_QUALITY],
    ),
    "memory": _long(
        "Peak memory",
        lambda e: e.get("peak_memory") is not None,
        [_CONTENDER, ("MB", lambda r, w, e: digits(e["peak_memory"] / 1e6)), ("over ours", _over_ours("peak_memory"))],
    ),
    "startup": _long(
        "Packing and first call",
        lambda e: e.get("packing") is not None or e.get("first_call") is not None,
        [_CONTENDER, ("packing, ms", _once("packing")), ("first call, ms", _once("first_call"))],
    ),
    "cuda": _long(
        "Device, host and graph",
        lambda e: e.get("host"),
        [
            ("contender", lambda r, w, e: e["contender"]),
            ("device", lambda r, w, e: ms(e)),
            ("host", _median("host")),
            ("wall", _median("wall")),
            ("graph", _median("graph")),
            ("gradient error", _gradient),
        ],
    ),
    "encoding": encoding,
}
