"""Makes a release: checks, writes the version, builds, tests, commits and tags. Pushes nothing.

    python release/release.py 0.2.0          the whole of it; whatever fails, the tree is as it was before
    python release/release.py --check 0.2.0  what can be said without building; changes nothing
    python release/release.py --tag v0.2.0   whether the tag fits the tree, for the workflow that publishes it

Each of them ends with the notes of the release in build/release-notes.md. It works on the repository in the current
folder, and needs Python 3.11 and git.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path

# mypy reads this for Python 3.10, which has none.
tomllib = importlib.import_module("tomllib")

PYPROJECT, CHANGELOG, CITATION = Path("pyproject.toml"), Path("CHANGELOG.md"), Path("CITATION.cff")
NOTES = Path("build/release-notes.md")
# As PEP 440 and Semantic Versioning both read it. A release candidate is 1.0.0rc1, which is 1.0.0-rc.1 in the latter.
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:rc([1-9]\d*))?", re.ASCII)
# Where the version and the date stand.
PLACES = {
    PYPROJECT: [(r'^version = ".*"$', 'version = "{version}"')],
    CHANGELOG: [(r"^## \[Unreleased\]$", "## [Unreleased]\n\n## [{version}] - {date}")],
    CITATION: [(r"^version: .*(\ndate-released: .*)?$", "version: {version}\ndate-released: {date}")],
}
# The documentation first, which takes the least.
TARGETS = ("docs", "lint", "typecheck", "wheel", "test")


class Refused(Exception):
    """A release that cannot be made, and why."""


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(description="make a release, and push nothing")
    parser.add_argument("version", nargs="?", help="such as 0.2.0, or 0.2.0rc1")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only look whether it could be made")
    only.add_argument("--tag", help="only check that this tag is the version of the tree")
    given = parser.parse_args(arguments)
    if (given.version is None) == (given.tag is None):
        parser.error("give a version, such as 0.2.0, or --tag v0.2.0")
    try:
        if given.tag is not None:
            check_tag(given.tag)
        elif given.check:
            check(given.version)
            write_notes(section("Unreleased"))
        else:
            release(given.version)
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def release(version: str) -> None:
    """Make a release, up to what the user pushes."""
    check(version)
    with written(version):
        for target in TARGETS:
            print(f"release: make {target}", flush=True)
            if subprocess.run(["make", target], check=False).returncode:
                msg = f"make {target} failed; {', '.join(map(str, PLACES))} are as they were"
                raise Refused(msg)
        check_wheels(version)
        write_notes(section(version))
        git("commit", "--quiet", "--message", f"release: {version}", "--", *map(str, PLACES))
    git("tag", "--annotate", f"v{version}", "--message", f"colbert-fast {version}")
    print(
        f"release: {version} is committed and tagged here, and nothing is pushed. Read {NOTES}, then publish it with\n"
        f"  git push --atomic origin main v{version}\n"
        "or take it back with\n"
        f"  git tag --delete v{version} && git reset --keep HEAD~1"
    )


def check(version: str) -> None:
    """Raise Refused, with all reasons, unless a release of this version may be made from the tree."""
    new, here = key(version), declared()
    tags = [tag for tag in git("tag", "--list", "v*").split() if VERSION.fullmatch(tag[1:])]
    last = max(tags, key=lambda tag: key(tag[1:]), default=None)
    branch = git("rev-parse", "--abbrev-ref", "HEAD").strip()
    reasons = citation_of(here)
    if branch != "main":
        reasons.append(f"the branch must be main; it is {branch}")
    if changes := git("status", "--porcelain").splitlines():
        reasons.append(f"the tree must be clean; git status lists {', '.join(line[3:] for line in changes[:5])}")
    if last is not None and new <= key(last[1:]):
        reasons.append(f"the version must be newer than {last}, the last tag; got {version}")
    if new < key(here):
        reasons.append(f"the version must not be older than {here}, which {PYPROJECT} has; got {version}")
    if not re.search(r"^- ", section("Unreleased"), re.MULTILINE):
        reasons.append(f"the section Unreleased of {CHANGELOG} has no entries")
    for path, lines in PLACES.items():
        for pattern, _ in lines:
            if (found := len(re.findall(pattern, path.read_text("utf-8"), re.MULTILINE))) != 1:
                reasons.append(f"{path} must have one line {pattern}; it has {found}")
    if reasons:
        raise Refused("; ".join(reasons))


def check_tag(tag: str) -> None:
    """Raise Refused unless a tag is the version of the tree, of main, and has notes."""
    version = tag.removeprefix("v")
    key(version)
    if tag != f"v{declared()}":
        msg = f"the tag must be v{declared()}, the version in {PYPROJECT}; got {tag}"
        raise Refused(msg)
    if reasons := citation_of(version):
        raise Refused(reasons[0])
    if subprocess.run(["git", "merge-base", "--is-ancestor", "HEAD", "origin/main"], check=False).returncode:
        msg = f"the tag {tag} must be on main"
        raise Refused(msg)
    write_notes(section(version))


def check_wheels(version: str) -> None:
    """Raise Refused unless there are wheels of this version, with every licence that the sources name."""
    wheels = sorted(Path("dist").glob(f"colbert_fast-{version}-*.whl"))
    if not wheels:
        msg = f"make wheel left no wheel of {version} in dist"
        raise Refused(msg)
    patterns = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["license-files"]
    licences = {path.as_posix() for pattern in patterns for path in Path().glob(pattern)}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
            found = BytesParser().parsebytes(file.read(metadata))["Version"]
            missing = licences - {name.partition("/licenses/")[2] for name in file.namelist()}
        if found != version or missing:
            msg = f"{wheel} must be of {version}; it is of {found}, and lacks the licences {sorted(missing)}"
            raise Refused(msg)


@contextmanager
def written(version: str) -> Iterator[None]:
    """Write a version and today's date into the tree. If the context fails, the files are as they were."""
    before = {path: path.read_bytes() for path in PLACES}
    date = datetime.datetime.now(datetime.timezone.utc).date()
    try:
        for path, changes in PLACES.items():
            text = before[path].decode()
            for pattern, line in changes:
                text = re.sub(pattern, line.format(version=version, date=date), text, flags=re.MULTILINE)
            path.write_bytes(text.encode())
        yield
    except BaseException:
        for path, content in before.items():
            path.write_bytes(content)
        raise


def citation_of(version: str) -> list[str]:
    """Return nothing if a paper that cites us would name this version, else the reason."""
    if f"\nversion: {version}\n" in CITATION.read_text("utf-8"):
        return []
    return [f"{CITATION} must have the version {version}, as {PYPROJECT} has"]


def section(version: str) -> str:
    """Return the section of the changelog about a version, without its heading."""
    text = CHANGELOG.read_text("utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        msg = f"{CHANGELOG} has no section [{version}]"
        raise Refused(msg)
    return found[1].strip() + "\n"


def write_notes(notes: str) -> None:
    """Write the notes of a release, whose paragraphs are one line each: GitHub breaks them where their lines end."""
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(re.sub(r"(?<=\S)\n +(?=[^\s-])", " ", notes), encoding="utf-8")
    print(f"release: the notes are in {NOTES}")


def key(version: str) -> tuple[float, ...]:
    """Return what versions are compared by. A release candidate comes before its release."""
    parts = VERSION.fullmatch(version)
    if parts is None:
        msg = f"the version must be three numbers, such as 0.2.0, or those and a candidate, 0.2.0rc1; got {version}"
        raise Refused(msg)
    return (*map(int, parts.groups()[:3]), int(parts[4]) if parts[4] else float("inf"))


def declared() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["version"])


def git(*arguments: str) -> str:
    """Return what a command of git prints."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"git {arguments[0]}: {done.stderr.strip()}"
        raise Refused(msg)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
