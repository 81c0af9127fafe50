"""The benchmark report: tables and plots say what the results say, losses and errors included."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.model import Run
from benchmarks.tables import SECTIONS

NAMES = ["summary", "plot", *SECTIONS]
README = "# Title\n\n" + "\n".join(f"<!-- benchmark:{n}:begin -->\nold\n<!-- benchmark:{n}:end -->\n" for n in NAMES)


def result(contender: str, ms: float, kind: str = "peer", **fields: Any) -> dict[str, Any]:
    return {
        "contender": contender,
        "ours": kind == "ours",
        "kind": kind,
        "seconds": {"p20": 0.9e-3 * ms, "p50": 1e-3 * ms, "p80": 1.2e-3 * ms, "rounds": 24},
        "noisy": False,
        "wrong": False,
        "max_relative_error": 1.2e-7,
        "kendall_tau": 1.0,
        **({"backend": contender.split()[-1]} if kind == "ours" else {}),
        **fields,
    }


def example() -> dict[str, Any]:
    """One run, in which ours takes 4 ms with AVX-512; memory bounds it at 2 ms, and compute a loss at 3 ms."""
    reranking = [
        result("colbert_fast cpu:avx2", 8, "ours", peak_memory=3000000, packing=0.0025),
        result("colbert_fast cpu:avx512", 4, "ours", peak_memory=2000000, first_call=0.007),
        result("colbert_fast cpu:amx", 1, "ours", wrong=True, max_relative_error=0.02),
        result("torch einsum", 26, "torch", peak_memory=30000000),
        result("torch matmul", 22, "torch", noisy=True),
        result("torch half", 2, "torch", wrong=True, max_relative_error=0.5),
        result("maxsim-cpu a|b", 37),
        result("numkong", 3, wrong=True, max_relative_error=0.035),
    ]
    lost = [result("colbert_fast cpu:avx512", 4, "ours"), result("torch einsum", 3, "torch")]
    common = {"source": "a paper", "shape": "1 x 1000, 32 x 300", "bytes": 80e6, "device": "cpu", "cold": True}
    return {
        "schema": 1,
        "profile": "full",
        "date": "2026-11-23T18:00:00Z",
        "commit": "0123456789abcdef",
        "dirty": True,
        "command": "make bench",
        "seed": 0,
        "machine": {"name": "box", "cpu": "A CPU", "cores": 4, "threads": 2, "last_level_cache": 1e8, "gpu": None},
        "versions": {"torch": "2.13.0"},
        "limits": {
            "read_bytes_per_s": {"1": 20e9, "2": 40e9},
            "flops_per_s": {"cpu:avx512": {"2": 400e9}, "cpu:avx2": {"2": 200e9}, "cpu:amx": {"2": 9e12}},
        },
        "workloads": [
            {**common, "name": "rerank", "flops": 4e8, "results": reranking, "skipped": []},
            {
                **common,
                "name": "lost",
                "flops": 12e8,
                "cold": False,
                "results": lost,
                "skipped": [{"contender": "numkong", "reason": "one document\na call"}],
            },
        ],
        "encoding": [
            {**result("colbert_fast models.ColBERT.scores", 50, "ours"), "name": "encode", "pairs": 100},
            {**result("colbert_fast models.ColBERT.scores, int8", 20, "ours"), "name": "encode", "pairs": 100},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "results").mkdir()
    save(tmp_path, example())
    return tmp_path


def save(folder: Path, run: dict[str, Any]) -> None:
    (folder / "results" / "box.json").write_text(json.dumps(run), encoding="utf-8")


def run_report(folder: Path, *options: str) -> int:
    return report.main([*options, "--readme", str(folder / "README.md"), "--results", str(folder / "results")])


def written(folder: Path, run: dict[str, Any] | None = None) -> str:
    if run is not None:
        save(folder, run)
    assert run_report(folder) == 0
    return (folder / "README.md").read_text(encoding="utf-8")


def cells(text: str, section: str, first: str) -> list[list[str]]:
    """The cells of all lines of a section with `first` in their first two cells; a pipe in a cell is escaped."""
    body = text.split(f"<!-- benchmark:{section}:begin -->")[1].split(f"<!-- benchmark:{section}:end -->")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "a table's lines differ in length"
    return [[cell.strip() for cell in line] for line in lines if first in "".join(line[:2])]


def test_a_row_compares_our_best_backend_with_the_best_of_torch_and_every_peer(folder: Path) -> None:
    text = written(folder)
    ((name, ours, torch, maxsim_cpu, numkong, of_limit, error),) = cells(text, "scores", "rerank")
    assert name == "**rerank**<br><sub>1 x 1000, 32 x 300, cold</sub>"
    assert ours == "4.00<br><sub>cpu:avx512, 3.60-4.80</sub>"  # 0.9 and 1.2 times 4 ms
    assert torch == "~5.5x<br><sub>~22.0 ms, torch matmul</sub>"  # 22 / 4
    assert maxsim_cpu == "9.2x<br><sub>37.0 ms</sub>"  # 37 / 4 = 9.25
    assert numkong == "wrong, error 3.5 %<br><sub>0.75x, 3.00 ms</sub>"
    assert of_limit == "50 %<br><sub>memory, 20.0 GB/s</sub>"  # 80 MB at 40 GB/s are 2 ms, of 4
    assert error == "1.2e-07"


def test_a_loss_is_shown_and_a_warm_workload_in_the_cache_is_bound_by_compute(folder: Path) -> None:
    ((_, _, torch, maxsim_cpu, numkong, of_limit, _),) = cells(written(folder), "scores", "lost")
    assert torch == "**0.75x, ours slower**<br><sub>3.00 ms, torch einsum</sub>"
    assert (maxsim_cpu, numkong) == ("-", "skipped")
    assert of_limit == "75 %<br><sub>compute, 300 GFLOP/s</sub>"  # 1.2 GFLOP at 400 GFLOP/s are 3 ms, of 4


def test_a_wrong_contender_is_never_the_best(folder: Path) -> None:
    run = example()
    for entry in run["workloads"][1]["results"]:
        entry.update(wrong=True, max_relative_error=0.1)
    ((_, ours, torch, *_, of_limit, error),) = cells(written(folder, run), "scores", "lost")
    assert (ours, torch, of_limit, error) == ("wrong, error 10 %", "-", "-", "-")
    assert "no correct result of ours" in (folder / "docs" / "images" / "box.svg").read_text(encoding="utf-8")


def test_ours_is_a_call_that_names_no_backend_even_if_a_forced_one_was_faster(folder: Path) -> None:
    run = example()
    results = run["workloads"][1]["results"]
    results.append({**result("colbert_fast", 6, "ours"), "backend": "cpu:avx512"})
    ((_, ours, torch, *_),) = cells(written(folder, run), "scores", "lost")
    assert ours.startswith("6.00<br>")
    assert torch.startswith("**0.50x, ours slower**")
    results[-1].update(wrong=True)
    ((_, ours, *_),) = cells(written(folder, run), "scores", "lost")
    assert ours.startswith("4.00<br>")


def test_the_heading_says_what_ran_where(folder: Path) -> None:
    text = written(folder)
    heading = "**box**: A CPU, 4 cores, 2 threads; commit 0123456789 (dirty), 2026-11-23; `make bench` (full profile"
    assert heading in text
    assert "torch 2.13.0" in text
    assert "- numkong: one document a call (lost)" in text


def test_what_the_suite_could_not_find_out_is_left_out(folder: Path) -> None:
    run = example()
    run.update(commit=None, dirty=None, versions={"torch": "2.13.0", "numkong": None}, limits={})
    run["machine"]["last_level_cache"] = None
    text = written(folder, run)
    assert "; commit unknown, 2026-11-23; " in text
    assert "None" not in text
    assert [row[5] for row in cells(text, "scores", "<sub>")] == ["-", "-"]


def test_noise_is_marked_and_explained_only_where_there_is_some(folder: Path) -> None:
    assert "`~` marks a noisy figure" in written(folder)
    run = example()
    run["workloads"][0]["results"][4]["noisy"] = False
    assert "~" not in written(folder, run)


def test_every_backend_of_ours_has_a_line_against_its_own_peak(folder: Path) -> None:
    text = written(folder)
    ((_, backend, ms, _, torch, peer, rate, share, *_),) = cells(text, "backends", "cpu:avx2")
    assert (backend, ms, torch, peer) == ("colbert_fast cpu:avx2", "8.00", "~2.8x", "4.6x")  # 22 / 8, 37 / 8
    assert (rate, share) == ("10.0 GB/s", "25 %")  # still memory, 2 ms of 8
    assert cells(text, "backends", "cpu:amx")[0][-2] == "wrong, error 2 %"


def test_memory_packing_and_encoding(folder: Path) -> None:
    text = written(folder)
    assert cells(text, "memory", "torch einsum") == [["", "torch einsum", "30.0", "15.0x"]]  # 30 MB over 2 MB
    assert cells(text, "startup", "cpu:avx2")[0][2:] == ["2.50", "-"]
    assert cells(text, "startup", "cpu:avx512")[0][2:] == ["-", "7.00"]
    int8, default = cells(text, "encoding", "encode")
    assert default[1:5] == ["colbert_fast models.ColBERT.scores", "50.0", "2000", "1.0x"]  # 100 pairs in 50 ms
    assert int8[4] == "0.40x"  # a path of ours is no rival


def test_a_section_without_data_is_empty_and_needs_no_marker(folder: Path) -> None:
    run = example()
    run["encoding"] = []
    assert "<!-- benchmark:encoding:begin -->\n<!-- benchmark:encoding:end -->" in written(folder, run)
    kept = README.split("<!-- benchmark:encoding:begin -->")[0]
    (folder / "README.md").write_text(kept, encoding="utf-8")
    assert run_report(folder) == 0


def test_check_passes_after_writing_and_changes_nothing(folder: Path) -> None:
    assert run_report(folder, "--check") == 1
    assert (folder / "README.md").read_text(encoding="utf-8") == README
    assert not (folder / "docs" / "images" / "box.svg").exists()
    written(folder)
    assert run_report(folder, "--check") == 0


@pytest.mark.parametrize("stale", ["README.md", "docs/images/box.svg"])
def test_check_fails_on_a_changed_number(folder: Path, stale: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder)
    path = folder / stale
    path.write_text(path.read_text(encoding="utf-8").replace("9.2x", "9.3x"), encoding="utf-8")
    capsys.readouterr()
    assert run_report(folder, "--check") == 1
    assert capsys.readouterr().err == f"{path} disagrees with the results: run python -m benchmarks.report\n"


BEGIN, END = "<!-- benchmark:scores:begin -->", "<!-- benchmark:scores:end -->"


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        (README.replace(BEGIN, "").replace(END, ""), "needs the marker benchmark:scores; got it in none"),
        (README.replace(END, ""), r"one .*scores:begin.* one .*scores:end.* got \['begin'\]"),
        (README.replace(BEGIN, "x").replace(END, BEGIN).replace("x", END, 1), "scores:begin"),
        (README.replace(END, END + BEGIN + END), "got"),
        (README.replace(END, "").replace("<!-- benchmark:backends:end -->", END), "before any other marker"),
        (README.replace("benchmark:scores", "benchmark:scoers"), "needs the marker benchmark:scores; got it in none"),
        (
            README + BEGIN.replace("scores", "scoers"),
            "unknown marker benchmark:scoers; there are summary, plot, scores,",
        ),
    ],
)
def test_a_missing_or_unpaired_marker_is_named(
    folder: Path, readme: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_text(readme, encoding="utf-8")
    assert run_report(folder) == 1
    assert re.search(f"README.md:? .*{said}", capsys.readouterr().err)
    assert (folder / "README.md").read_text(encoding="utf-8") == readme


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "box.json: not JSON"), ('{"schema": 2}', "reads schema 1; got 2"), (None, "no results in")],
)
def test_unusable_results_are_named(
    folder: Path, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "results" / "box.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    assert run_report(folder) == 1
    assert said in capsys.readouterr().err


def test_of_several_runs_of_a_machine_the_most_thorough_counts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(folder)
    quick = {**example(), "profile": "quick", "seed": 7}
    path = folder / "results" / "box-quick.json"
    path.write_text(json.dumps(quick), encoding="utf-8")
    assert written(folder) == before
    path.write_text(json.dumps(example()), encoding="utf-8")
    assert run_report(folder) == 1
    assert "holds another full run of box" in capsys.readouterr().err


def test_a_workload_that_ran_nowhere_is_only_named_as_skipped(folder: Path) -> None:
    run = example()
    skipped = [{"contender": name, "reason": "no CUDA device"} for name in ("colbert_fast", "torch einsum")]
    unknown = {"bytes": None, "flops": None, "cold": None, "results": [], "skipped": skipped}
    run["workloads"].append({**run["workloads"][0], **unknown, "name": "gpu-pages"})
    text = written(folder, run)
    assert not cells(text, "scores", "gpu-pages")
    assert text.count("gpu-pages") == text.count("- everyone: no CUDA device (gpu-pages)") == 1
    assert "gpu-pages" not in (folder / "docs" / "images" / "box.svg").read_text(encoding="utf-8")


def test_a_machine_needs_a_name_that_is_a_file_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example()
    run["machine"]["name"] = "../box"
    save(folder, run)
    assert run_report(folder) == 1
    assert "made of letters, digits" in capsys.readouterr().err


def test_the_plot_is_deterministic_and_labels_every_contender(folder: Path) -> None:
    written(folder)
    content = (folder / "docs" / "images" / "box.svg").read_bytes()
    assert report.svg(Run.of(json.loads(json.dumps(example())))) == content
    labels = [element.text or "" for element in ET.fromstring(content).iter("{http://www.w3.org/2000/svg}text")]
    assert "4.00 ms, cpu:avx512" in labels
    assert "50 % of memory limit" in labels
    assert "torch matmul ~5.5x" in labels
    assert "torch einsum 6.5x" not in labels  # 26 / 4: a slower path of torch, named in a tooltip
    assert b"<title>torch einsum 6.5x</title>" in content
    assert "torch einsum 0.75x" in labels
    assert "numkong 0.75x, wrong, error 3.5 %" in labels
    assert "colbert_fast cpu:amx 0.25x, wrong, error 2 %" in labels
    assert not any("cpu:avx2" in label for label in labels)


def test_the_readme_shows_the_plot_of_every_machine(folder: Path) -> None:
    run = example()
    run["machine"]["name"] = "other"
    (folder / "results" / "other.json").write_text(json.dumps(run), encoding="utf-8")
    text = written(folder)
    assert text.index("](docs/images/box.svg)") < text.index("](docs/images/other.svg)")
    assert text.index("**box**") < text.index("**other**")


def test_labels_of_the_plot_do_not_overlap(folder: Path) -> None:
    """In crowded rows, at both ends of the axis: boxes as wide as the plot itself reckons."""
    run = example()
    many = [result(f"library-{n} path", 2 * 1.25**n) for n in range(24)]
    run["workloads"][0]["results"] += many
    svg = ET.fromstring(report.svg(Run.of(run)))
    boxes = []
    for element in svg.iter("{http://www.w3.org/2000/svg}text"):
        if re.match(r"library|torch \w|maxsim|numkong|colbert_fast cpu|4.00 ms|\d+ % of", element.text or ""):
            x, y, width = float(element.get("x", "")), float(element.get("y", "")), 6.3 * len(element.text or "")
            boxes.append((x - width if element.get("text-anchor") == "end" else x, y, width))
    assert len(boxes) > 30
    assert all(x >= 250 and x + width <= 1000 for x, _, width in boxes)
    for index, (x, y, width) in enumerate(boxes):
        for other, other_y, other_width in boxes[:index]:
            assert y != other_y or x + width <= other or other + other_width <= x


@pytest.mark.parametrize("other", ["results/README.md", "docs/performance.md"])
def test_sections_may_stand_in_other_documents(folder: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    moved = [f"<!-- benchmark:{name}:{edge} -->" for name in ("plot", "backends") for edge in ("begin", "end")]
    details = folder / other
    details.parent.mkdir(exist_ok=True)
    details.write_text("\n".join(moved), encoding="utf-8")
    assert run_report(folder) == 1  # in both
    assert "needs the marker benchmark:plot; got it in [" in capsys.readouterr().err
    kept = README
    for marker in moved:
        kept = kept.replace(marker, "")
    (folder / "README.md").write_text(kept, encoding="utf-8")
    assert run_report(folder) == 0
    text = details.read_text(encoding="utf-8")
    assert "Every backend of ours" in text
    assert "](images/box.svg)" in text or "](../docs/images/box.svg)" in text
    assert "Every backend of ours" not in (folder / "README.md").read_text(encoding="utf-8")
    assert run_report(folder, "--check") == 0


def test_the_short_table_has_what_most_users_wait_for(folder: Path) -> None:
    assert "<!-- benchmark:summary:begin -->\n<!-- benchmark:summary:end -->" in written(folder)
    run = example()
    for workload, name in zip(run["workloads"], ("rerank-text-float32", "pages-bfloat16"), strict=True):
        workload["name"] = name
    run["workloads"][0]["results"] += [
        result("sentence-transformers maxsim", 30),
        {**result("colbert_fast", 2, "ours"), "backend": "cpu:avx512"},
    ]
    text = written(folder, run)
    ((name, ours, torch, main, other),) = cells(text, "summary", "rerank-text")
    assert name == "rerank-text-float32<br><sub>1 x 1000, 32 x 300, cold; box</sub>"
    assert ours == "2.00<br><sub>cpu:avx512</sub>"
    assert (torch, main) == ("~11x<br><sub>torch matmul</sub>", "15x<br><sub>30.0 ms</sub>")  # 22 / 2, 30 / 2
    assert other == "18x<br><sub>maxsim-cpu a\\|b</sub>"  # 37 / 2; numkong is faster, and wrong
    assert cells(text, "summary", "pages")[0][2:] == ["**0.75x, ours slower**<br><sub>torch einsum</sub>", "-", "-"]
    short = text.split("benchmark:summary:end")[0]
    assert "](docs/images/box.svg)" in short


def test_the_plot_shows_a_plain_call_even_if_a_forced_backend_was_faster(folder: Path) -> None:
    run = example()
    run["workloads"][1]["results"].append({**result("colbert_fast", 6, "ours"), "backend": "cpu:avx512"})
    content = report.svg(Run.of(run)).decode()
    assert ">6.00 ms, cpu:avx512<" in content and "colbert_fast cpu:avx512 0.67x" not in content


def test_a_run_is_read_as_it_was_written() -> None:
    run = example()
    assert Run.of(Run.of(run).json()) == Run.of(run)
    with pytest.raises(TypeError, match="median"):
        Run.of({**run, "encoding": [{**run["encoding"][0], "median": 1.0}]})


def test_the_documents_of_this_project_agree_with_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(report.__file__).parents[1])
    assert report.main(["--check"]) == 0
