"""read_beir reads a good folder, and names the line of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from colbert_fast.utils.beir import read_beir

FILES = {
    "corpus.jsonl": (
        '\ufeff{"_id": "d1", "title": "Paris", "text": "The capital\u2028of France."}\r\n'
        '\n{"_id": "d2", "text": "", "metadata": {}}\n{"_id": 3, "title": null, "text": "three"}'
    ),
    "queries.jsonl": '{"_id":"q2","text":"second"}\n{"_id":"q1","text":"first"}\n{"_id":"q3","text":"third"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\t3\t1\nq1\td2\t0\nq1\td1\t2\n",
    "qrels/dev.tsv": "q3\tnot-there\t1\r\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.encode())
    return tmp_path


def test_a_good_folder(folder: Path) -> None:
    documents, queries, qrels = read_beir(str(folder))
    assert documents == [
        {"id": "d1", "title": "Paris", "text": "The capital\u2028of France."},
        {"id": "d2", "title": "", "text": ""},
        {"id": "3", "title": "", "text": "three"},
    ]
    assert list(queries.items()) == [("q1", "first"), ("q2", "second")]
    assert qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"3": 1}}


def test_another_split_without_a_header(folder: Path) -> None:
    _, queries, qrels = read_beir(folder, split="dev")
    assert queries == {"q3": "third"} and qrels == {"q3": {"not-there": 1}}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", b'{"_id": "d9", "text": "cut', r"corpus.jsonl, line 5: not JSON: .+"),
        ("corpus.jsonl", b"[" * 100_000, r"corpus.jsonl, line 5: not JSON: .+"),
        ("corpus.jsonl", b"[1]", r"line 5: a line must be a JSON object with _id and text; got list"),
        ("corpus.jsonl", b'{"text": "a"}', r"line 5: _id must be a string; got None"),
        ("corpus.jsonl", b'{"_id": true, "text": "a"}', r"line 5: _id must be a string; got True"),
        ("corpus.jsonl", b'{"_id": "d2", "text": "a"}', r"line 5: the _id 'd2' is already on line 3"),
        ("corpus.jsonl", b'{"_id": "d9"}', r"line 5: text must be a string; got None"),
        ("corpus.jsonl", b'{"_id": "d9", "text": "", "title": 3}', r"line 5: title must be a string; got 3"),
        ("corpus.jsonl", b'{"_id": "d9", "text": "\xff"}', r"line 5: not UTF-8: .+"),
        ("queries.jsonl", b'{"_id": "q4", "text": ["a"]}', r"queries.jsonl, line 4: text must be a string; got \[.+"),
        ("qrels/test.tsv", b"q1\td1", r"test.tsv, line 6: a line must be .+ with tabs; got 'q1\\td1'"),
        ("qrels/test.tsv", b"q1\td1\tx", r"line 6: a line must be a query's id, a document's id and an integer, .+"),
        ("qrels/dev.tsv", b"q1\td1\t1.0", r"dev.tsv, line 2: a line must be .+"),
        ("qrels/test.tsv", b"q9\td1\t1", r"line 6: the query 'q9' is not in queries.jsonl"),
        ("qrels/test.tsv", b"q1\td1\t1", r"line 6: an earlier line has another judgement of the document 'd1' .+"),
    ],
)
def test_a_bad_line_has_its_number(folder: Path, name: str, line: bytes, message: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes().rstrip() + b"\n" + line)
    with pytest.raises(ValueError, match=rf"{message}$"):
        read_beir(folder, split=Path(name).stem if "qrels" in name else "test")


def test_a_score_that_is_no_integer_is_not_a_header(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1.5")
    with pytest.raises(ValueError, match=r"test.tsv, line 1: a line must be .+; got 'q1.+1.5'"):
        read_beir(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks qrels/train.tsv; .* these splits: \['dev', 'test'\]"):
        read_beir(folder, split="train")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks queries.jsonl; "):
        read_beir(folder)
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        read_beir(folder / "nowhere")
