"""PackedTokens in files: what is saved is loaded, and a damaged file is refused."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, embeddings
from disks import full_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import colbert_fast as cf
from colbert_fast import PackedTokens, _packed_files
from colbert_fast._safetensors import MappedFile, Pieces, encoded, write

LENGTHS = [5, 0, 9, 5, 1] * 20
DIM = 64


def batches() -> dict[str, PackedTokens]:
    whole = PackedTokens.from_list(embeddings(LENGTHS, DIM))
    back = whole.lengths.flip(0).cumsum(0)
    return {
        "whole": whole,
        "slice": whole[3:7],
        "steps": whole[10:40:9],
        "list": whole[[90, 4, 2, 2]],
        "nothing": whole[:0],
        "rowless": whole[[1, 6]],
        "int8": whole.quantize(),
        "a part of int8": whole.quantize()[[40, 3, 44]],
        "shared rows": PackedTokens(torch.randn(500, DIM), torch.arange(100), torch.full((100,), 9)),
        "gaps": PackedTokens(torch.randn(500, DIM), torch.arange(0, 500, 5), torch.full((100,), 3)),
        "the last item first": PackedTokens(whole.tokens, whole.rows - back, whole.lengths.flip(0)),
        "every second number": whole.with_tokens(torch.randn(whole.rows, 2 * DIM)[:, ::2]),
        "transposed": whole.with_tokens(torch.randn(DIM, whole.rows).T),
        "without numbers": PackedTokens(torch.empty(3, 0), torch.tensor([0, 1]), torch.tensor([1, 2])),
        "negated": whole.with_tokens(torch._neg_view(whole.tokens)),
        "gradient": whole.with_tokens(torch.randn(whole.rows, DIM, requires_grad=True))[4:6],
    }


def check_same(found: PackedTokens, wanted: PackedTokens) -> None:
    assert found.lengths.tolist() == wanted.lengths.tolist() and found.dim == wanted.dim
    assert found.dtype == wanted.dtype and not found.tokens.requires_grad
    assert found.rows == int(wanted.lengths.sum())
    assert torch.equal(found.starts, found.lengths.cumsum(0) - found.lengths)
    for i, item in enumerate(wanted):
        assert torch.equal(found[i].float(), item.float())


@pytest.mark.parametrize("piece", [1, 2000, 2**26])
@pytest.mark.parametrize("kind", batches())
def test_what_is_saved_is_loaded(kind: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packed_files, "_PIECE", piece)
    batch = batches()[kind]
    path = tmp_path / "x"
    batch.save(path)
    found = PackedTokens.load(path)
    check_same(found, batch)
    assert found.tokens.data_ptr() % 64 == 0
    # No more than the rows of the items, whatever the batch was cut from.
    own = int(batch.lengths.sum()) * (batch.dim * batch.tokens.element_size() + 4 * (batch.scales is not None))
    assert path.stat().st_size <= own + 16 * len(batch) + 1000
    found.save(path)  # over the file that it is mapped from
    check_same(PackedTokens.load(path), batch)
    check_same(found, batch)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    batch = PackedTokens.from_list([item.to(dtype) for item in embeddings([3, 0, 4], 8)])
    batch.save(str(tmp_path / "x"))
    check_same(PackedTokens.load(str(tmp_path / "x")), batch)


def test_scores_of_a_loaded_batch(tmp_path: Path) -> None:
    queries = torch.randn(3, 4, DIM)
    whole = PackedTokens.from_list(embeddings([5, 7, 9, 5, 1] * 20, DIM))
    for batch in (whole, whole.quantize(), whole.to(torch.bfloat16)):
        batch[[7, 3, 90]].save(tmp_path / "x")
        found = PackedTokens.load(tmp_path / "x")
        assert torch.equal(cf.maxsim(queries, found), cf.maxsim(queries, batch)[:, [7, 3, 90]])


@pytest.mark.cuda
def test_from_a_gpu(tmp_path: Path) -> None:
    for batch in batches().values():
        batch.to("cuda").save(tmp_path / "x")
        check_same(PackedTokens.load(tmp_path / "x"), batch)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of a process there")
def test_loading_does_not_read_the_tokens(tmp_path: Path) -> None:
    rows, path = 2**21, tmp_path / "x"
    lengths = torch.full((rows // 64,), 64)
    tensors = {"tokens": Pieces(torch.float32, (rows, 128), []), "starts": lengths.cumsum(0) - lengths}
    header = next(encoded({**tensors, "lengths": lengths}, {"format": _packed_files.FORMAT}))
    with open(path, "wb") as file:
        file.write(header)
        file.seek(rows * 512, os.SEEK_CUR)  # 1 GiB of zeros, which take no room on a disk
        for tensor in (tensors["starts"], lengths):
            file.write(tensor.numpy().tobytes())

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages()
    found = PackedTokens.load(path)
    assert (pages() - before) * os.sysconf("SC_PAGE_SIZE") < 2**26
    assert len(found) == rows // 64 and not found[-1].any()


@pytest.mark.skipif(sys.platform != "linux" or sys.version_info < (3, 13), reason="Python keeps mapped files open")
def test_a_loaded_file_is_not_kept_open(tmp_path: Path) -> None:
    batches()["whole"].save(tmp_path / "b")
    before = len(os.listdir("/proc/self/fd"))
    loaded = PackedTokens.load(tmp_path / "b")
    assert len(os.listdir("/proc/self/fd")) == before and len(loaded) == 100


def test_a_batch_whose_offsets_were_changed(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    batch = PackedTokens.from_list(embeddings([3, 4], DIM))
    batch.lengths[1] = 5
    with pytest.raises(ValueError, match="an item lies outside of the rows"):
        batch.save(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    batch = PackedTokens.from_list(embeddings([1000], 1000))
    with full_disk(), pytest.raises(OSError, match=f"File too large: '{path}'"):
        batch.save(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_only_files_are_replaced(tmp_path: Path) -> None:
    batch = PackedTokens.from_list(embeddings([3], DIM))
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", os.devnull):
        with pytest.raises(OSError, match=f"{path} is not an ordinary file, and is not replaced by one"):
            batch.save(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        batch.save(tmp_path / "absent" / "x")
    (tmp_path / "link").symlink_to("x")
    batch.save(tmp_path / "link")
    check_same(PackedTokens.load(tmp_path / "x"), batch)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_killed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = PackedTokens.from_list(embeddings([3], DIM))
    old.save(path)
    code = """
import os, signal, sys, torch
from colbert_fast import PackedTokens, _packed_files
def killed(rows, starts, lengths):
    yield rows[:1]
    os.kill(os.getpid(), signal.SIGKILL)
_packed_files._gathered = killed
PackedTokens.from_list([torch.ones(9, 64)]).save(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_same(PackedTokens.load(path), old)
    (rest,) = {other.name for other in tmp_path.iterdir()} - {"x"}
    assert rest.startswith("x.") and rest.endswith(".part")


def fields(**changes: Any) -> dict[str, torch.Tensor]:
    """Return what a file of three items has, with changes; None leaves a field out."""
    whole = {
        "tokens": torch.ones(6, 4, dtype=torch.int8),
        "starts": torch.tensor([0, 2, 2]),
        "lengths": torch.tensor([2, 0, 4]),
        "scales": torch.ones(6),
    }
    return {name: tensor for name, tensor in {**whole, **changes}.items() if tensor is not None}


BIG = 2**62
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": None}, "tokens is missing; the file has starts, lengths, scales"),
    "flat tokens": ({"tokens": torch.ones(6)}, r"tokens must have the shape [*, *]; it has [6]"),
    "integer tokens": ({"tokens": torch.ones(6, 4, dtype=torch.int32)}, "tokens must be "),
    "no lengths": ({"lengths": None}, "lengths is missing"),
    "float lengths": ({"lengths": torch.ones(3)}, "lengths must be torch.int64; it is torch.float32"),
    "one length": ({"lengths": torch.tensor(6)}, r"lengths must have the shape [*]; it has []"),
    "a start too many": ({"starts": torch.zeros(4).long()}, r"starts must have the shape [3]; it has [4]"),
    "other starts": ({"starts": torch.tensor([0, 1, 2])}, "starts must be the sums of the lengths before"),
    "too long": ({"lengths": torch.tensor([2, 0, 7])}, "lengths must be from 0 to the 6 rows of tokens; got 7"),
    "negative": ({"lengths": torch.tensor([-1, 3, 4])}, "lengths must be from 0 to the 6 rows of tokens; got -1"),
    "huge": ({"lengths": torch.tensor([BIG, BIG, BIG])}, f"lengths must be from 0 to the 6 rows of tokens; got {BIG}"),
    "too few": ({"lengths": torch.tensor([2, 0, 3])}, "lengths must be the 6 rows of tokens in all"),
    "no items": (
        {"lengths": torch.empty(0).long(), "starts": torch.empty(0).long()},
        "lengths must be the 6 rows of tokens in all",
    ),
    "no scales": ({"scales": None}, "scales is missing"),
    "a scale too few": ({"scales": torch.ones(5)}, "scales must have the shape [6]; it has [5]"),
    "a bad scale": ({"scales": torch.full((6,), torch.nan)}, "scales must be finite and 0 or more"),
    "scales of floats": ({"tokens": torch.ones(6, 4)}, "scales go with int8 tokens only; tokens are torch.float32"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_fields(kind: str, tmp_path: Path) -> None:
    changes, said = WRONG[kind]
    path = tmp_path / "x"
    with open(path, "wb") as file:
        write(file, fields(**changes), {"format": _packed_files.FORMAT})
    with pytest.raises(ValueError) as found:
        PackedTokens.load(path)
    assert str(found.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"format": "colbert_fast embeddings 2"}])
def test_other_formats(metadata: dict[str, str], tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        write(file, fields(), metadata)
    said = f"x: the metadata must have the format 'colbert_fast embeddings 1'; got {metadata.get('format')!r}"
    with pytest.raises(ValueError, match=said):
        PackedTokens.load(tmp_path / "x")
    torch.save(PackedTokens.from_list(embeddings([3], DIM)), tmp_path / "x")
    with pytest.raises(ValueError, match="x is no whole safetensors file"):
        PackedTokens.load(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        PackedTokens.load(tmp_path / "absent")


def test_the_fields_in_the_file(tmp_path: Path) -> None:
    """Others read the file too: docs/layouts.md names the fields."""
    PackedTokens.from_list(embeddings([2, 0, 4], 8)).quantize().save(tmp_path / "x")
    file = MappedFile(tmp_path / "x")
    assert list(file.fields) == ["tokens", "starts", "lengths", "scales"]
    assert file.tensor("starts", torch.int64, (3,)).tolist() == [0, 2, 2]


@functools.cache
def int8_file() -> bytes:
    target = io.BytesIO()
    _packed_files.write_batch(target, PackedTokens.from_list(embeddings([2, 1, 4], 8)).quantize()._rows())
    return target.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever happens to the bytes: a ValueError that names the file, or items that can be scored."""
    path = tmp_path / "x"
    content = bytearray(int8_file())
    header = 8 + int.from_bytes(content[:8], "little")
    places = st.integers(0, header - 1) | st.integers(header, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=0, max_size=3)):
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789{}[]",:-'))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        found = PackedTokens.load(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    if bool((found.lengths > 0).all()):
        assert cf.maxsim(torch.ones(1, 2, found.dim), found).shape == (1, len(found))
