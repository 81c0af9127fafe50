"""Embed the texts of a file and add them to a collection, some minutes of work at a time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import colbert_fast as cf
from colbert_fast.cli import encoders, texts
from colbert_fast.cli.arguments import model_options
from colbert_fast.cli.notices import progress
from colbert_fast.cli.output import folder_bytes, tell
from colbert_fast.collection import changes, checks

if TYPE_CHECKING:
    from colbert_fast.models import ColBERT

# Embeddings are added after so many seconds, or when they fill a segment. When a run is killed, no more is lost. What
# was added in small parts is put together at the end.
_SECONDS = 60.0
# The encoder gets so many texts at a time, and sorts them by length.
_PIECE = 128


class Corpus:
    """The texts of a file, which is read twice, so that they are never all in memory; standard input is kept."""

    def __init__(self, path: str, form: str | None, fields: Sequence[str] | None) -> None:
        """``fields``: what is kept of a line of JSONL; none named: all but the id and the text. None: nothing."""
        self._path = path
        self._form = form
        self._fields = fields
        self._kept = list(texts.records(path, form)) if path == texts.STANDARD_INPUT else None
        self.ids: list[str] = []
        for record in self.records():
            self.ids.append(record.id)
            try:
                checks.metadata_text(self.metadata(record), "metadata")
            except (TypeError, ValueError) as error:
                msg = f"{texts.shown(path)}: the text {record.id!r}: {error}"
                raise ValueError(msg) from None
        checks.ids(self.ids, "ids")

    def records(self) -> Iterator[texts.Record]:
        """Yield all texts."""
        return iter(self._kept) if self._kept is not None else texts.records(self._path, self._form)

    def metadata(self, record: texts.Record) -> dict[str, Any] | None:
        """Return what is kept about a text."""
        if self._fields is None:
            return None
        if not self._fields:
            return {name: value for name, value in record.fields.items() if name not in ("_id", "id", "text")}
        return {name: record.fields[name] for name in self._fields if name in record.fields}


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Add the texts that the collection does not have, and return what is printed and the exit status."""
    corpus = Corpus(texts.corpus_of(chosen.corpus), chosen.format, chosen.metadata)
    options = model_options(chosen)
    encoder = encoders.load(chosen.model, options)
    if encoder._fresh_projection:
        msg = (
            f"{chosen.model!r} has no projection, and a random one is another one in every search: give a trained "
            "model, or --embedding-size none for the transformer's own states"
        )
        raise ValueError(msg)
    exact: Any = ... if chosen.exact is None else None if chosen.exact == "none" else chosen.exact
    with cf.Collection(chosen.collection, codes=chosen.codes, exact=exact) as collection:
        _agree(collection, encoders.about(encoder, chosen.model, options))
        known = _known(collection, corpus, chosen.resume)
        started = time.perf_counter()
        try:
            tokens = _add(collection, encoder, corpus, known)
        except KeyboardInterrupt:
            tell(f"{collection.path} has {len(collection)} documents; the same command with --resume adds the others")
            raise
        facts = {
            "collection": str(chosen.collection),
            "added": len(corpus.ids) - len(known),
            "skipped": len(known),
            "documents": len(collection),
            "tokens": tokens,
            "dim": collection.dim,
            "codes": collection.codes,
            "exact": collection.exact,
        }
    # After the collection is closed, because its log is then gone.
    facts["bytes"] = folder_bytes(collection.path)
    facts["seconds"] = round(time.perf_counter() - started, 3)
    return [json.dumps(facts) if chosen.json else _told(facts)], 0


def _agree(collection: cf.Collection, about: dict[str, str]) -> None:
    """Note which model makes the embeddings. Raise ValueError if the collection has embeddings of another one."""
    known = collection.about.get("fingerprint")
    if len(collection) == 0:
        collection.describe({**collection.about, **about})
    elif known is None:
        msg = f"{collection.path} does not say which model made its embeddings: encode into another folder"
        raise ValueError(msg)
    elif known != about["fingerprint"]:
        was = collection.about.get("model")
        msg = (
            f"{collection.path} has embeddings of another model, or of other settings: {was!r} with the options "
            f"{collection.about.get('options')}; got {about['model']!r} with {about['options']}"
        )
        raise ValueError(msg)


def _known(collection: cf.Collection, corpus: Corpus, resume: bool) -> set[str]:
    """Return the ids of texts that the collection has already, which only ``resume`` allows."""
    known = set(collection.ids()).intersection(corpus.ids)
    if known and not resume:
        msg = f"{collection.path} has {len(known)} of the ids already, such as {min(known)!r}; --resume skips them"
        raise ValueError(msg)
    return known


def _add(collection: cf.Collection, encoder: ColBERT, corpus: Corpus, known: set[str]) -> int:
    """Embed and add the texts that are not known, and return how many tokens they have."""
    total = times = 0
    waiting: list[tuple[list[texts.Record], cf.PackedTokens]] = []

    def add() -> None:
        records = [record for some, _ in waiting for record in some]
        batches = [batch for _, batch in waiting]
        collection.add([record.id for record in records], batches, [corpus.metadata(record) for record in records])
        waiting.clear()

    with progress(len(corpus.ids), "documents") as bar:
        bar.update(len(known))
        records = (record for record in corpus.records() if record.id not in known)
        numbers, added = 0, time.monotonic()
        while some := list(islice(records, _PIECE)):
            batch = encoder.encode_packed([record.text for record in some], query_mode=False).to("cpu")
            waiting.append((some, batch))
            total += batch.rows
            numbers += batch.tokens.numel()
            bar.update(len(some))
            if numbers >= changes.SEGMENT_BYTES // 4 or time.monotonic() - added >= _SECONDS:
                add()
                numbers, added, times = 0, time.monotonic(), times + 1
        if waiting:
            add()
            times += 1
    if times > 1 or (times and known):
        collection.compact()
    return total


def _told(facts: dict[str, Any]) -> str:
    skipped = f", {facts['skipped']} were there" if facts["skipped"] else ""
    return (
        f"{facts['collection']}: {facts['added']} documents added{skipped}, {facts['documents']} in all; "
        f"{facts['tokens']} tokens of dim {facts['dim']}, {facts['codes']} codes, exact {facts['exact'] or 'none'}, "
        f"{facts['bytes'] / 2**20:.2f} MiB, encoded in {facts['seconds']:.2f} s"
    )
