"""A file of csrc/ includes only what its folder may include, and a target region holds nothing that is shared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from kernels import ROOT

CSRC = ROOT / "csrc"
# The folders that a folder may include. The folder "" is csrc/ itself.
ALLOWED = {"": {""}, "host": {"", "host"}, "per_tier": {"per_tier"}, "tiers": {"", "per_tier", "tiers"}}
# What tiers/ may include of host/: what the machine can run.
OF_HOST = {"host/cpu_features.h", "host/amx_permission.h"}
INCLUDE = re.compile(r'\s*#\s*include\s+(<[^>]+>|"[^"]+")')
# Functions are compiled differently inside of these. The two kinds may be nested.
BEGIN = re.compile(r"CF_TARGET_BEGIN\(|CF_IN_PROGRAM_ORDER_BEGIN")
END = re.compile(r"CF_TARGET_END|CF_IN_PROGRAM_ORDER_END")


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def included(source: Path) -> list[str]:
    """Return what a file includes, as it is written there: "<cmath>", or "per_tier/tile.h" with its quotes."""
    return [match[1] for line in source.read_text().splitlines() if (match := INCLUDE.match(line))]


def wrong_folders(csrc: Path) -> Iterator[str]:
    for source in sorted(path for path in csrc.rglob("*") if path.suffix in {".h", ".cpp"}):
        name = source.relative_to(csrc).as_posix()
        for what in included(source):
            if what.startswith("<"):
                if folder_of(name) == "per_tier":
                    yield f"{name} includes {what}"
                continue
            other = what.strip('"')
            allowed = folder_of(other) in ALLOWED[folder_of(name)]
            if not allowed and not (folder_of(name) == "tiers" and other in OF_HOST):
                yield f"{name} includes {other}"
            if not (csrc / other).is_file():
                yield f"{name} includes {other}, which is no file of csrc/"


class Compiled:
    """Walks a tier in the order in which the compiler reads it, and remembers what it met inside target regions."""

    def __init__(self, csrc: Path, tier: str) -> None:
        self.csrc = csrc
        self.has_region = BEGIN.search((csrc / tier).read_text()) is not None
        self.depth = 0
        self.seen: set[str] = set()  # every header has #pragma once
        self.problems: list[str] = []
        self.inside: list[tuple[str, str]] = []  # (file, its text inside of the region)
        self.read(tier)
        if self.depth:
            self.problems.append(f"{tier} does not end its region")

    def read(self, name: str) -> None:
        if name in self.seen or not (self.csrc / name).is_file():
            return
        self.seen.add(name)
        kept: list[str] = []
        for line in (self.csrc / name).read_text().splitlines():
            if BEGIN.match(line):
                self.depth += 1
            elif END.match(line):
                self.depth -= 1
            elif match := INCLUDE.match(line):
                self.include(name, match[1])
            elif self.depth and not line.lstrip().startswith("#"):
                kept.append(line)
        if kept:
            self.inside.append((name, "\n".join(kept)))

    def include(self, name: str, what: str) -> None:
        if what.startswith("<"):
            if self.depth:
                self.problems.append(f"{name} includes {what} inside a target region")
            return
        other = what.strip('"')
        if folder_of(other) == "per_tier" and self.has_region and not self.depth:
            self.problems.append(f"{name} includes {other} outside its target region")
        self.read(other)


@cache
def not_anonymous(text: str) -> str:
    """Return what of a source without preprocessor lines is not in an anonymous namespace of colbert_fast."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    opening = re.compile(r"namespace\s+colbert_fast\s*\{\s*namespace\s*\{")
    rest = ""
    while match := opening.search(text):
        rest += text[: match.start()]
        text = text[match.end() :]
        depth = 1
        for brace in re.finditer(r"[{}]", text):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                text = text[brace.end() :]
                break
        # What follows the end of the anonymous namespace must be the end of the outer one.
        text = text.lstrip().removeprefix("}")
    return (rest + text).strip()


def problems(csrc: Path) -> list[str]:
    found = list(wrong_folders(csrc))
    for source in sorted((csrc / "tiers").glob("*.cpp")):
        tier = Compiled(csrc, f"tiers/{source.name}")
        found += tier.problems
        for name, text in tier.inside:
            if shared := not_anonymous(text):
                found.append(f"{name} has outside an anonymous namespace: {shared.splitlines()[0]}")
    return list(dict.fromkeys(found))


def test_folders_and_regions() -> None:
    assert problems(CSRC) == []


def test_every_tier_but_portable_has_a_region() -> None:
    tiers = [source.name for source in sorted((CSRC / "tiers").glob("*.cpp"))]
    assert len(tiers) > 5
    without = [name for name in tiers if not Compiled(CSRC, f"tiers/{name}").has_region]
    assert without == ["portable.cpp"]


SHARED = "namespace colbert_fast {\ninline int shared() { return 1; }\n}\n"
PLANTED = [
    ("per_tier/loop.h", '#include "host/threads.h"', "per_tier/loop.h includes host/threads.h"),
    ("per_tier/loop.h", '#include "tiers/avx2_isa.h"', "per_tier/loop.h includes tiers/avx2_isa.h"),
    ("per_tier/tile.h", '#include "maxsim.h"', "per_tier/tile.h includes maxsim.h"),
    ("per_tier/tile.h", '#include "loop.h"', "per_tier/tile.h includes loop.h, which is no file of csrc/"),
    ("per_tier/tile.h", "#include <vector>", "per_tier/tile.h includes <vector> inside a target region"),
    ("per_tier/tile.h", SHARED, "per_tier/tile.h has outside an anonymous namespace: namespace colbert_fast {"),
    ("tiers/avx2.cpp", '#include "host/plan.h"', "tiers/avx2.cpp includes host/plan.h"),
    (
        "tiers/avx2.cpp",
        '#include "per_tier/loop.h"',
        "tiers/avx2.cpp includes per_tier/loop.h outside its target region",
    ),
    ("tiers/avx2_isa.h", "#include <cmath>", "tiers/avx2_isa.h includes <cmath> inside a target region"),
    (
        "tiers/avx2_isa.h",
        '#include "tiers/amx_config.h"',
        "tiers/amx_config.h includes <cstdint> inside a target region",
    ),
    ("host/plan.cpp", '#include "per_tier/tile.h"', "host/plan.cpp includes per_tier/tile.h"),
    ("host/plan.h", '#include "tiers/amx_config.h"', "host/plan.h includes tiers/amx_config.h"),
    ("maxsim.h", '#include "host/threads.h"', "maxsim.h includes host/threads.h"),
]


@pytest.mark.parametrize(("name", "text", "message"), PLANTED, ids=[message for _, _, message in PLANTED])
def test_a_violation_is_found(name: str, text: str, message: str, tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = (csrc / name).read_text()
    once = "#pragma once\n"
    planted = source.replace(once, f"{once}{text}\n") if once in source else f"{text}\n{source}"
    (csrc / name).write_text(planted)
    assert message in problems(csrc)


def test_a_function_between_the_ends_of_two_namespaces_is_found() -> None:
    own = "namespace colbert_fast {\nnamespace {\nint a() { return 1; }\n}\n"
    assert not_anonymous(own + "}\n") == ""
    assert not_anonymous(own + "int b() { return 2; }\n}\n").startswith("int b()")
