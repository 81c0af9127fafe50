"""``colbert-fast evaluate``."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colbert_fast._backends import named
from colbert_fast._extras import need
from colbert_fast.cli import bm25, encoders, measures, runs
from colbert_fast.cli.arguments import add_backend, add_cache, add_model, model_options, positive
from colbert_fast.cli.notices import warnings_as_lines
from colbert_fast.cli.output import check_output, make_folder, tell, write_lines
from colbert_fast.cli.texts import Texts, check_unicode, document_text

_MEASURES = {"ir-measures": "0.3.6"}
_BM25 = {"bm25s": "0.2.6", "PyStemmer": "2.2"}


@dataclass
class Row:
    """What one system reached, and the seconds it took: ``encode`` is None for BM25."""

    name: str
    measures: dict[str, float]
    encode: float | None
    search: float


@dataclass
class Task:
    """What every system gets: the texts, the judgements, and what is measured."""

    corpus: Texts
    queries: Texts
    qrels: dict[str, dict[str, int]]
    measures: list[Any]
    files: dict[str, Path]

    def tell_what_is_absent(self) -> None:
        """Tell of judged documents that are not in the corpus. Not before the checks: an error is one line alone."""
        if unknown := {name for judged in self.qrels.values() for name in judged} - set(self.corpus.ids):
            tell(f"warning: judged documents that are not in corpus.jsonl: {len(unknown)}, such as {min(unknown)!r}")

    def row(self, name: str, rankings: list[runs.Ranking], encode: float | None, search: float) -> Row:
        """Measure what a system found, and write its run file if the user wants one."""
        found = measures.measured(self.measures, self.qrels, self.queries, self.corpus.ids, rankings)
        if name in self.files:
            write_lines(self.files[name], runs.as_trec(self.queries, self.corpus.ids, rankings, name))
        return Row(name, found, encode, search)


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure how well encoders rank a collection in the layout of BEIR",
        description="Measure how well encoders, and BM25, rank a collection in the layout of BEIR.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv")
    parser.add_argument("--split", default="test", help="the judgements to use (default test)")
    parser.add_argument(
        "--first-stage",
        choices=("none", "bm25"),
        default="none",
        help="none: rank all documents (default). bm25: rank what BM25 finds, and show BM25 alone",
    )
    parser.add_argument("--depth", type=positive, default=100, help="results of each query (default 100)")
    metrics = f"measures in the notation of ir-measures (default {' '.join(measures.DEFAULT)})"
    parser.add_argument("--metrics", nargs="+", default=list(measures.DEFAULT), metavar="NAME", help=metrics)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--run-output", type=Path, metavar="DIR", help="write a TREC run of each system to this folder")
    add_cache(parser)
    add_backend(parser)
    add_model(parser, many=True)
    parser.set_defaults(run=run, mistake_status=2, check=lambda chosen: _check(parser, chosen))


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    need("colbert-fast evaluate", "retrieval", _MEASURES | (_BM25 if chosen.first_stage == "bm25" else {}))
    named(chosen.backend)
    task = _task(chosen)
    rows = []
    with warnings_as_lines():
        # All at once, so that an unknown model is told of before the first one has worked for minutes.
        loaded = {name: encoders.load(name, model_options(chosen)) for name in chosen.model}
        for encoder in loaded.values():
            encoders.check_backend(encoder, chosen.backend)
        task.tell_what_is_absent()
        candidates = None
        if chosen.first_stage == "bm25":
            started = time.perf_counter()
            found = bm25.search(task.queries.texts, task.corpus.texts, chosen.depth)
            rows.append(task.row("bm25", found, None, time.perf_counter() - started))
            candidates = [[number for number, _ in ranking] for ranking in found]
        for name, encoder in loaded.items():
            rows.append(_of_encoder(task, name, encoder, candidates, chosen))
    return _as_json(chosen, task, rows) if chosen.json else _as_table(chosen, task, rows), 0


def _of_encoder(
    task: Task, name: str, encoder: Any, candidates: list[list[int]] | None, chosen: argparse.Namespace
) -> Row:
    # Imported only here, because they need what `load` looks for.
    from colbert_fast.cli.embedding import Embedder
    from colbert_fast.cli.ranking import search

    embedder = Embedder(encoder, folder=chosen.cache, name=name)
    found = search(embedder, task.queries.texts, task.corpus.texts, chosen.depth, candidates, chosen.backend)
    return task.row(name, found.rankings, found.encoding_seconds, found.scoring_seconds)


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if not chosen.model and chosen.first_stage == "none":
        parser.error("give --model M, or --first-stage bm25 for BM25 alone")
    if "bm25" in chosen.model and chosen.first_stage == "bm25":
        parser.error("argument --model: bm25 is the name of the first stage; write ./bm25 for the folder")
    if twice := sorted({name for name in chosen.model if chosen.model.count(name) > 1}):
        parser.error(f"argument --model: {twice[0]!r} is given twice")


def _task(chosen: argparse.Namespace) -> Task:
    # Imported only here, because it needs the extra that `run` looks for.
    from colbert_fast.utils.beir import read_beir

    asked = measures.parse(chosen.metrics, chosen.depth)
    documents, texts, qrels = read_beir(chosen.folder, chosen.split)
    corpus = Texts([d["id"] for d in documents], [document_text(d["title"], d["text"]) for d in documents])
    queries = Texts(list(texts), list(texts.values()))
    if not corpus.ids or not queries.ids:
        msg = f"{chosen.folder} has {len(corpus.ids)} documents, and {len(queries.ids)} queries with judgements"
        raise ValueError(msg)
    for what, given in (("document", corpus), ("query", queries)):
        for name, text in zip(given.ids, given.texts, strict=True):
            check_unicode(f"{chosen.folder}: the {what} {name!r}", name + text)
    measures.check(asked, qrels)
    files: dict[str, Path] = {}
    if chosen.run_output is not None:
        runs.check_trec_ids(queries, "query")
        runs.check_trec_ids(corpus, "document")
        files = _run_files(chosen)
    return Task(corpus, queries, qrels, asked, files)


def _run_files(chosen: argparse.Namespace) -> dict[str, Path]:
    """Return the run file of each system. The folder is made."""
    folder: Path = chosen.run_output
    make_folder(folder)
    names = [*(["bm25"] if chosen.first_stage == "bm25" else []), *chosen.model]
    files: dict[str, Path] = {}
    for name in names:
        # A file system allows 255 bytes for a name. The end of a path says more than its beginning.
        plain = re.sub(r"[^\w.-]+", "-", name)[-60:].strip("-.") or "model"
        taken = {path.stem for path in files.values()}
        stem = next(stem for stem in (plain, *(f"{plain}-{n}" for n in range(2, len(names) + 2))) if stem not in taken)
        files[name] = folder / f"{stem}.trec"
        check_output(files[name])
    return files


def _as_json(chosen: argparse.Namespace, task: Task, rows: list[Row]) -> list[str]:
    facts = {
        "folder": chosen.folder,
        "split": chosen.split,
        "documents": len(task.corpus.ids),
        "queries": len(task.queries.ids),
        "judgements": sum(map(len, task.qrels.values())),
        "first_stage": chosen.first_stage,
        "depth": chosen.depth,
        "rows": [asdict(row) for row in rows],
    }
    return [json.dumps(facts, indent=1)]


def _as_table(chosen: argparse.Namespace, task: Task, rows: list[Row]) -> list[str]:
    names = [str(measure) for measure in task.measures]
    stage = f"BM25 top {chosen.depth} reranked" if chosen.first_stage == "bm25" else "all documents ranked"
    wide = max(len(row.name) for row in rows)
    lines = [
        f"{len(task.corpus.ids)} documents, {len(task.queries.ids)} queries ({chosen.split}), {stage}",
        "".join([" " * wide, *(f"{name:>{_width(name)}}" for name in names), f"{'encode':>11}{'search':>11}"]),
    ]
    for row in rows:
        cells = [f"{row.measures[name]:>{_width(name)}.4f}" for name in names]
        seconds = [f"{'-' if value is None else f'{value:.2f} s':>11}" for value in (row.encode, row.search)]
        lines.append("".join([f"{row.name:<{wide}}", *cells, *seconds]))
    return lines


def _width(name: str) -> int:
    return max(len(name), 6) + 2
