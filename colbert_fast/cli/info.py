"""``colbert-fast info``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from colbert_fast import _info


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("info", help="versions, CPU, threads, and which backends can run here or why not")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    facts = _info.facts()
    lines = [json.dumps(facts, indent=1)] if chosen.json else _info.as_text(facts)
    return lines, 1 if facts["problems"] else 0
