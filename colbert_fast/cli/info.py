"""``colbert-fast info``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import colbert_fast as cf
from colbert_fast import _info
from colbert_fast.cli.output import folder_bytes


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("info", help="versions, CPU, threads, and which backends can run here or why not")
    parser.add_argument("collection", nargs="?", type=Path, metavar="FOLDER", help="tell of a collection instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    if chosen.collection is not None:
        found = _of_collection(chosen.collection)
        width = max(map(len, found))
        told = [f"{name:<{width}}  {'none' if value is None else value}" for name, value in found.items()]
        return [json.dumps(found, indent=1, ensure_ascii=False)] if chosen.json else told, 0
    facts = _info.facts()
    lines = [json.dumps(facts, indent=1)] if chosen.json else _info.as_text(facts)
    return lines, 1 if facts["problems"] else 0


def _of_collection(folder: Path) -> dict[str, Any]:
    with cf.Collection(folder, read_only=True) as collection:
        segments = collection._current().segments
        return {
            "folder": collection.path,
            "documents": len(collection),
            "tokens": sum(segment.tokens for segment in segments),
            "dim": collection.dim,
            "codes": collection.codes,
            "exact": collection.exact,
            "segments": len(segments),
            "bytes": folder_bytes(collection.path),
            **{name: collection.about.get(name) for name in ("model", "options")},
        }
