"""`make release` in a small repository, whose targets take no time; and what each new wheel is checked with."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from source import SOURCE

FILES = {
    "pyproject.toml": '[project]\nversion = "0.1.0"\nlicense-files = ["LICENSE", "other/*.txt"]\n',
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing\n  of two lines.\n- Another.\n",
    "CITATION.cff": "cff-version: 1.2.0\nversion: 0.1.0\nlicense: Apache-2.0\n",
    "LICENSE": "yes",
    "other/one.txt": "yes",
    ".gitignore": "/build/\n/dist/\n/log\n",
    "Makefile": "docs lint typecheck test:\n\t@echo $@ >> log\nwheel:\n\t@echo $@ >> log\n\t@python3 wheel.py\n",
    "wheel.py": """
import os, pathlib, re, zipfile
version = re.search('version = "(.*)"', open("pyproject.toml").read())[1]
os.makedirs("dist", exist_ok=True)
with zipfile.ZipFile(f"dist/colbert_fast-{version}-cp311-cp311-linux.whl", "w") as wheel:
    info = f"colbert_fast-{version}.dist-info"
    wheel.writestr(f"{info}/METADATA", f"Version: {version}\\n\\nText")
    wheel.writestr(f"{info}/licenses/LICENSE", "yes")
    wheel.writestr(f"{info}/licenses/other/one.txt", "yes")
""",
}
PLACES = ("pyproject.toml", "CHANGELOG.md", "CITATION.cff")
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11) or not shutil.which("git") or not shutil.which("make"),
    reason="a release is made with Python 3.11 or newer, git and make",
)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def commit() -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", "a change")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, in a repository that can be released."""
    for name, value in {"NAME": "Somebody", "EMAIL": "somebody@example.com"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    git("init", "--quiet", "--initial-branch", "main")
    commit()
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    spec = importlib.util.spec_from_file_location("release", SOURCE / "release" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release(release: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["0.2.0"]) == 0
    assert Path("log").read_text() == "docs\nlint\ntypecheck\nwheel\ntest\n"
    assert "git push --atomic origin main v0.2.0" in capsys.readouterr().out
    assert Path("build/release-notes.md").read_text() == "### Added\n\n- A thing of two lines.\n- Another.\n"
    assert git("status", "--porcelain") == ""
    assert git("log", "-1", "--format=%s %D").startswith("release: 0.2.0 HEAD -> main, tag: v0.2.0")
    assert 'version = "0.2.0"' in Path("pyproject.toml").read_text()
    date = git("log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%d").strip()
    assert "\n## [Unreleased]\n\n## [0.2.0] - 2" in Path("CHANGELOG.md").read_text()
    assert f"version: 0.2.0\ndate-released: {date[:2]}" in Path("CITATION.cff").read_text()
    # What the workflow of the tag finds, after the push and before it.
    assert release.main(["--tag", "v0.2.0"]) == 1
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert release.main(["--tag", "v0.2.0"]) == 0
    assert Path("build/release-notes.md").read_text() == "### Added\n\n- A thing of two lines.\n- Another.\n"
    for tag in ("v0.1.0", "0.2.0", "v0.2"):
        assert release.main(["--tag", tag]) == 1
    # A second one replaces the date, and needs entries of its own.
    assert release.main(["0.3.0rc1"]) == 1
    assert "Unreleased of CHANGELOG.md has no entries" in capsys.readouterr().err
    text = Path("CHANGELOG.md").read_text()
    Path("CHANGELOG.md").write_text(text.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"))
    commit()
    assert release.main(["0.3.0rc1"]) == 0
    assert Path("CITATION.cff").read_text().count("date-released") == 1
    assert Path("build/release-notes.md").read_text() == "- More.\n"


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.02.0", "0.2.0-rc.1", "0.2.0rc0", "0.2.0.dev1", "0.1\u0661.0"])
def test_versions_that_are_none(release: ModuleType, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["--check", version]) == 1
    assert f"got {version}" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.2.0; touch new", "0.2.0 ", "0.2.0 0.3.0"])
def test_make_gives_the_version_as_it_is(release: ModuleType, version: str) -> None:
    """The shell of make would run, or take away, a part of it."""
    shutil.copy(SOURCE / "Makefile", "Makefile")
    command = ["make", "--dry-run", "--no-print-directory", "release", "CHECK=1", f"VERSION={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout)[-2:] == ["--check", version]


def test_a_candidate_comes_before_its_release(release: ModuleType) -> None:
    versions = ["0.9.0", "0.10.0rc2", "0.10.0rc10", "0.10.0", "1.0.0"]
    assert sorted(versions, key=release.key) == versions


def test_all_reasons_are_named(release: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    git("tag", "v0.3.0")
    git("checkout", "--quiet", "-b", "other")
    Path("CITATION.cff").write_text("version: 0.0.9\n")
    Path("new").touch()
    assert release.main(["0.0.1"]) == 1
    reasons = capsys.readouterr().err
    for reason in ("it is other", "CITATION.cff, new", "v0.3.0, the last tag", "older than 0.1.0", "version 0.1.0, as"):
        assert reason in reasons, reason
    assert not Path("log").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("Makefile", "@echo $@ >> log\nwheel", "false\nwheel", "make docs failed"),
        ("wheel.py", "other/one.txt", "other/two.txt", "lacks the licences ['other/one.txt']"),
        ("wheel.py", "Version: {version}", "Version: 1", "it is of 1"),
        ("wheel.py", "colbert_fast-{version}-cp311", "another", "left no wheel of 0.2.0"),
    ],
)
def test_what_fails_leaves_the_tree_as_it_was(
    release: ModuleType, name: str, old: str, new: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(FILES[name].replace(old, new))
    commit()
    before = git("rev-parse", "HEAD")
    assert release.main(["0.2.0"]) == 1
    assert reason in capsys.readouterr().err
    assert git("status", "--porcelain") == git("tag") == ""
    assert git("rev-parse", "HEAD") == before
    assert all(Path(place).read_text() == FILES[place] for place in PLACES)


def test_a_check_changes_nothing(release: ModuleType) -> None:
    assert release.main(["--check", "0.1.0"]) == 0
    assert git("status", "--porcelain") == git("tag") == ""
    assert not Path("log").exists()


def test_this_tree_can_be_released(release: ModuleType) -> None:
    """The lines that a release replaces are there."""
    before = [(SOURCE / place).read_bytes() for place in PLACES]
    for place, content in zip(PLACES, before, strict=True):
        Path(place).write_bytes(content)
    version = release.declared()
    assert release.citation_of(version) == []
    commit()
    assert release.main(["--check", version]) == 0
    with pytest.raises(KeyboardInterrupt), release.written("9.8.7"):
        assert release.declared() == "9.8.7" and release.citation_of("9.8.7") == []
        assert "## [9.8.7] - 2" in Path("CHANGELOG.md").read_text(encoding="utf-8")
        raise KeyboardInterrupt
    assert [Path(place).read_bytes() for place in PLACES] == before


def test_the_check_of_a_wheel(extension: str) -> None:
    for more in ([], ["--without-torch"]):
        command = [sys.executable, str(SOURCE / "release" / "check_installed.py"), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "portable" in done.stdout, done.stderr
