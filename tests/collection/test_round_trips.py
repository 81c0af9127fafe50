"""What was added is there again, in every form, after every change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from collections_of import CODES, check_holds, documents, names

import colbert_fast as cf
from colbert_fast.collection import changes


@pytest.mark.parametrize("exact", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("codes", CODES)
def test_what_is_added_is_there(tmp_path: Path, codes: str, exact: str) -> None:
    given = documents(9)
    kept = [tokens.to(getattr(torch, exact)).float() for tokens in given]
    with cf.Collection(tmp_path / "c", codes=codes, exact=exact) as collection:
        assert collection.add(names(9), given) == 9
        check_holds(collection, dict(zip(names(9), kept, strict=True)))
        collection.verify()
    with cf.Collection(tmp_path / "c") as again:
        assert (again.codes, again.exact, again.dim) == (codes, exact, 8)
        check_holds(again, dict(zip(names(9), kept, strict=True)))
        assert again["d3"].dtype == getattr(torch, exact)


@pytest.mark.parametrize("codes", CODES)
def test_without_exact_tokens_there_is_what_the_codes_say(tmp_path: Path, codes: str) -> None:
    given = documents(5)
    with cf.Collection(tmp_path / "c", codes=codes, exact=None) as collection:
        collection.add(names(5), given)
        collection.verify()
        for name, tokens in zip(names(5), given, strict=True):
            found = collection[name]
            assert found.shape == tokens.shape
            assert found.dtype == torch.float32
            if codes in ("int8", "int4+4"):
                torch.testing.assert_close(found, tokens, rtol=0.05, atol=0.05)
        torch.testing.assert_close(collection[["d4", "d1"]][1], collection["d1"], rtol=1e-5, atol=1e-6)


def test_changes_keep_the_order_of_adding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Segments of four tokens.
    monkeypatch.setattr(changes, "SEGMENT_BYTES", 4 * 4 * 8)
    given = documents(30, seed=1)
    expected = dict(zip(names(30), given, strict=True))
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(names(20), given[:20])
        collection.add(names(10, 20), given[20:])
        check_holds(collection, expected)
        assert collection.delete(["d0", "d7", "d19", "none"]) == 3
        for name in ("d0", "d7", "d19"):
            del expected[name]
        check_holds(collection, expected)
        collection.add(["d5", "d30"], documents(2, seed=2), replace=True)
        del expected["d5"]
        expected |= dict(zip(["d5", "d30"], documents(2, seed=2), strict=True))
        check_holds(collection, expected)
        for _ in range(2):
            collection.compact()
            collection.verify()
            check_holds(collection, expected)
        segments = len(list((tmp_path / "c").glob("*.safetensors")))
        assert segments == len(collection._current().files) > 1
        collection.delete(list(expected))
        collection.compact()
        assert len(collection) == 0
        assert not list((tmp_path / "c").glob("*.safetensors"))
        collection.add(["d1"], given[1:2])
        check_holds(collection, {"d1": given[1]})


def test_metadata_and_conditions(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        described = [{"lang": "en", "year": 2000, "tags": ["a", "b"]}, None, {"lang": "de", "year": 1990.5}, {}]
        collection.add(names(4), documents(4), described)
        assert [collection.metadata(name) for name in names(4)] == described
        assert collection.ids("lang = 'en'") == ["d0"]
        assert collection.ids("year < ? -- a comment", [1995]) == ["d2"]
        assert collection.ids("lang = :lang OR id = 'd3'", {"lang": "de"}) == ["d2", "d3"]
        assert collection.ids("lang IS NULL") == ["d1", "d3"]
        assert collection.ids("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = 'b')") == ["d0"]
        collection.update(["d3"], [{"text": "\ud800", "deep": json.loads("[" * 98 + "]" * 98)}])
        assert collection.metadata("d3")["text"] == "\ud800"
        assert collection.ids("text IS NOT NULL AND deep IS NOT NULL") == ["d3"]
        collection.update(["d3"], [{}])
        assert collection.ids("json_extract(_metadata, '$.tags[1]') = 'b'") == ["d0"]
        collection.update(["d1", "d0"], [{"lang": "fr"}, None])
        assert collection.ids("lang = 'fr'") == ["d1"]
        assert collection.metadata("d0") is None
        with pytest.raises(KeyError, match="'none'"):
            collection.update(["d1", "none"], [None, None])
        assert collection.metadata("d1") == {"lang": "fr"}


@pytest.mark.needs("models")
def test_a_segment_is_a_file_of_safetensors(tmp_path: Path) -> None:
    import safetensors

    with cf.Collection(tmp_path / "c", codes="int4+4") as collection:
        collection.add(names(4), documents(4, dim=5))
        (path,) = (tmp_path / "c").glob("*.safetensors")
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["codes"] == "int4+4"
            assert torch.equal(file.get_tensor("lengths"), torch.tensor([len(one) for one in documents(4)]))
            assert torch.equal(file.get_tensor("exact"), collection[names(4)].tokens)
            assert set(file.keys()) == set(next(iter(collection._current().files.values())).layout.entries)


def test_the_same_condition_again(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(names(12), documents(12), [{"n": i} for i in range(12)])
        for _ in range(2):
            for i in range(11):
                assert collection.ids("n > ?", [i]) == names(11 - i, i + 1)
                assert collection.ids("n > ?", [str(i)]) == []
        collection.update(["d3"], [{"n": 100}])
        assert collection.ids("n > ?", [10]) == ["d3", "d11"]
