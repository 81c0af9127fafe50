"""What a package index shows of this package, and what pip reads."""

from __future__ import annotations

import re
from importlib.metadata import distribution, metadata
from urllib.parse import urlparse

import pytest
from source import SOURCE

from colbert_fast import _required

METADATA = metadata("colbert-fast")
REQUIREMENTS = METADATA.get_all("Requires-Dist") or []
DESCRIPTION = METADATA.get_payload() or METADATA["Description"]
LINKS = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", DESCRIPTION)
URLS = dict(line.split(", ") for line in METADATA.get_all("Project-URL") or [])


def extra(name: str) -> list[str]:
    """Return the requirements of one extra; an empty name means the base install."""
    found = [line.partition(";") for line in REQUIREMENTS]
    named = re.compile(r"extra == ['\"](.+?)['\"]")
    return [what.strip() for what, _, marker in found if name in (named.findall(marker) or [""])]


def test_the_readme_is_there_without_relative_links() -> None:
    assert METADATA["Description-Content-Type"] == "text/markdown"
    targets = [target for pair in LINKS for target in pair if target]
    assert any(target.endswith(".svg") for target in targets)
    for target in targets:
        assert target.startswith("#") or urlparse(target).scheme == "https", target
        path = re.fullmatch(rf"{re.escape(URLS['Repository'])}/(?:raw|blob)/HEAD/(.+)", target)
        assert path is None or (SOURCE / path[1].partition("#")[0]).is_file(), target
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```.*?```", readme, re.DOTALL):
        assert block in DESCRIPTION


def test_urls() -> None:
    assert set(URLS) == {"Homepage", "Repository", "Issues", "Changelog"}
    assert all(url.startswith(URLS["Repository"]) for url in URLS.values())


def test_a_base_install_needs_numpy_and_torch() -> None:
    assert list(_required.NEEDED) == ["numpy", "torch"]
    assert extra("") == [f"{package}>={first}" for package, first in _required.NEEDED.items()]


def test_extras() -> None:
    names = ["models", "onnx", "openvino", "demo", "retrieval", "collection", "plot", "integrations", "triton", "test"]
    names += ["bench", "bench-search", "lint", "docs"]
    assert METADATA.get_all("Provides-Extra") == names
    # The quickstart has a line for each.
    quickstart = (SOURCE / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", quickstart, re.MULTILINE) == METADATA.get_all("Provides-Extra")


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_requirement_has_a_lower_bound(requirement: str) -> None:
    assert requirement.startswith("colbert-fast[") or ">=" in requirement.partition(";")[0]


@pytest.mark.needs("models")
def test_what_the_models_ask_for_is_what_their_extra_installs() -> None:
    from colbert_fast import models

    assert sorted(extra("models")) == [f"{package}>={first}" for package, first in sorted(models._NEEDED.items())]


@pytest.mark.needs("models")
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_what_a_backend_of_the_encoder_asks_for_is_what_its_extra_installs(name: str) -> None:
    from colbert_fast.models import runtimes

    named = [f"{package}>={first}" for package, first in runtimes.NEEDED[name].items()]
    assert sorted(extra(name)) == sorted(["colbert-fast[models]", *named])


def test_classifiers_name_the_pythons() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(METADATA.get_all("Classifier") or []))
    assert named[0] == METADATA["Requires-Python"].removeprefix(">=")
    # Those that docs/platforms.md says were tested, and no others.
    table = (SOURCE / "docs" / "platforms.md").read_text(encoding="utf-8")
    assert named == sorted(set(re.findall(r"^\|[^|]*\| (3\.\d+)[^|]*\| tested \|", table, re.MULTILINE)))


@pytest.mark.needs("build")
def test_the_licences_of_what_the_extension_contains_come_along() -> None:
    named = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "licenses").iterdir()}
    assert set(METADATA.get_all("License-File") or []) == {"LICENSE", *named}
    # The headers of pybind11 are compiled into the extension, under the licence of the release that is installed.
    (theirs,) = (file for file in distribution("pybind11").files or [] if file.name == "LICENSE")
    ours = SOURCE / "licenses" / "pybind11.txt"
    assert ours.read_text(encoding="utf-8") == theirs.read_text(encoding="utf-8")
    table = (SOURCE / "licenses" / "README.md").read_text(encoding="utf-8")
    assert {f"licenses/{name}" for name in re.findall(r"`(\w+\.txt)`", table)} == named - {"licenses/README.md"}
