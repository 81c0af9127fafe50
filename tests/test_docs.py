"""The documentation tells the truth: its examples run, its links lead somewhere, and what it names is there."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from source import SOURCE, files

import colbert_fast as cf
from colbert_fast import _threads, cli

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/colbert-fast/colbert-fast"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES += sorted(ROOT.glob("docs/**/*.md"))
# The title of an example that only some machines can run, and what it needs: lacking.py.
NEEDS = {
    "needs the extra collection": "collection",
    "needs the extra demo": "demo",
    "needs the extra plot": "plot",
    "needs the extra retrieval": "retrieval",
    "needs a CUDA device": "cuda",
    "needs Haystack": "haystack",
    "needs LangChain": "langchain",
    "needs LlamaIndex": "llama_index",
    "needs mteb": "mteb",
    "needs rerankers": "rerankers",
}
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
# A line that promises the shapes of what it assigns: `best, numbers = ...  # [2, 2]`.
PROMISE = re.compile(r"^([\w, ]+) = .*# \[([\d, ]+)\]$", re.MULTILINE)


class Example(NamedTuple):
    """The Python of one page that runs together, block after block."""

    page: str
    blocks: list[str]
    needs: frozenset[str]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", read(page))


def examples_of(page: Path) -> Iterator[Example]:
    """What runs anywhere; and, if the page has more than that, all of it."""
    blocks = []
    for _, language, options, code in FENCE.findall(read(page)):
        if language == "python":
            title = re.fullmatch(r'(?: title="(.*)")?', options)
            assert title, f"{named(page)}: {options}"
            blocks.append((textwrap.dedent(code), NEEDS[title[1]] if title[1] else None))
    for needs in ({None}, {None, *(need for _, need in blocks)}):
        chosen = [code for code, need in blocks if need in needs]
        if chosen and (needs != {None} or len(needs) == 1):
            yield Example(named(page), chosen, frozenset(needs - {None}))


EXAMPLES = list(dict.fromkeys((e.page, tuple(e.blocks), e.needs) for page in PAGES for e in examples_of(page)))


def run(blocks: tuple[str, ...]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        for targets, shape in PROMISE.findall(block):
            for target in targets.split(", "):
                assert list(names[target].shape) == ast.literal_eval(f"[{shape}]"), target
    return names


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(blocks, id="-".join([page, *sorted(needs)]), marks=[pytest.mark.needs(need) for need in needs])
        for page, blocks, needs in EXAMPLES
    ],
)
def test_examples_run(blocks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setattr(_threads, "_num_threads", None)  # set again after the test, for an example sets it
    run(blocks)


def test_a_wrong_promise_is_noticed() -> None:
    with pytest.raises(AssertionError):
        run(("import torch\nrows = torch.zeros(2, 3)  # [2, 2]",))


def test_the_pages_with_examples() -> None:
    pages = {page for page, _, _ in EXAMPLES}
    assert {"README.md", "docs/index.md", "docs/encoder.md", "docs/cuda.md"} <= pages
    assert len(pages) >= 9


def anchors(page: Path) -> set[str]:
    """The names that GitHub and mkdocs give to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)) for heading in headings)
    return {heading.strip().lower().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    known = files()
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        if target.startswith(f"{REPOSITORY}/"):
            path = re.fullmatch(r"(?:blob|raw|tree)/HEAD/(.+)", target.removeprefix(f"{REPOSITORY}/"))
            assert path and (path[1] in known or any(name.startswith(f"{path[1]}/") for name in known)), link
            continue
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), link
            continue
        found = (page.parent / target).resolve() if target else page
        name = found.relative_to(ROOT.resolve()).as_posix() if target else named(page)
        assert name in known, link
        # mkdocs checks the anchors of the API reference, which are not headings of a page.
        if anchor and "/api/" not in name:
            assert anchor in anchors(ROOT / name), link


def test_the_navigation_has_every_page() -> None:
    pages = set(re.findall(r"^ +- .*?: (\S+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE))
    assert pages == {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}


TEXT = "\n".join(map(read, PAGES))


def mentioned(pattern: str) -> set[Any]:
    found = set(re.findall(pattern, TEXT))
    assert found, pattern
    return found


def test_backends_exist() -> None:
    known = {backend.name for backend in cf.backends()}
    assert mentioned(r"\bcpu:\w+") <= known
    prefixes = {name.partition(":")[0] for name in known}
    of_the_encoder = {"onnx", "openvino"}
    assert mentioned(r'backend="([\w:]+)"') <= known | prefixes | of_the_encoder
    table = re.findall(r"^\| `([a-z][\w:]+)` \|", read(ROOT / "docs" / "backends.md"), re.MULTILINE)
    assert table == [backend.name for backend in sorted(cf.backends(), key=lambda b: b.name != "triton")]


def test_extras_exist() -> None:
    known = metadata("colbert-fast").get_all("Provides-Extra") or []
    assert mentioned(r"(?:colbert-fast|\.)\[(\w+)\]") <= set(known)
    assert mentioned(r"extra `(\w+)`") <= set(known)


def test_make_targets_exist() -> None:
    makefile = read(ROOT / "Makefile")
    targets = {target for line in re.findall(r"^([\w -]+):", makefile, re.MULTILINE) for target in line.split()}
    assert mentioned(r"(?:`|^)make ([a-z][\w-]*)") | set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE)) <= targets


def test_commands_exist() -> None:
    assert mentioned(r"(?:`|^)colbert-fast (\w+)") <= {module.__name__.rpartition(".")[2] for module in cli._COMMANDS}
    modules = mentioned(r"python -m (benchmarks[\w.]*|colbert_fast)\b")
    for module in modules:
        path = module.replace(".", "/")
        assert files() & {f"{path}.py", f"{path}/__main__.py"}, module


def test_environment_variables_exist() -> None:
    code = "".join((SOURCE / name).read_text(encoding="utf-8") for name in files() if name.endswith(".py"))
    for variable in mentioned(r"COLBERT_FAST_[A-Z_]+"):
        assert code.count(variable) > 0, variable


def test_public_names_exist() -> None:
    assert mentioned(r"\bcf\.(\w+)") <= set(dir(cf))
    assert mentioned(r"\bPackedTokens\.(\w+)\(") <= set(dir(cf.PackedTokens))
    reference = "".join(read(page) for page in ROOT.glob("docs/api/*.md"))
    documented = set(re.findall(r"^::: colbert_fast\.(\w+)$", reference, re.MULTILINE))
    assert documented == set(cf.__all__) - {"__version__"}


def test_names_in_files_exist() -> None:
    """As in "`sum_of_maxima()` in `csrc/per_tier/loop.h`"."""
    for name, path in mentioned(r"`(\w+)(?:\(\))?`,? in\s+`((?:csrc|colbert_fast|tests)/[\w./]+\.\w+)`"):
        assert re.search(rf"\b{name}\b", read(SOURCE / path)), f"{name} in {path}"


def test_the_tree_is_there() -> None:
    known, folders = files(), [""]
    (tree,) = re.findall(r"```text\n(.*?)```", read(ROOT / "docs" / "architecture.md"), re.DOTALL)
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r" {2,}", line.strip())[0].split():
            path = "".join(folders[: depth + 1]) + name
            assert path in known or any(other.startswith(path) for other in known if path.endswith("/")), path
            folders[depth + 1 :] = [name]


def test_files_that_are_named_exist() -> None:
    known = files()
    folders = {parent.as_posix() for name in known for parent in Path(name).parents}
    for name in mentioned(r"`((?:csrc|colbert_fast|tests|benchmarks|docs)/[\w./-]*)`"):
        assert name in known or name.rstrip("/") in folders, name
