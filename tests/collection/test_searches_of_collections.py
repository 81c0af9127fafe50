"""Collection.topk and Collection.recall: what is searched, while documents come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from collections_of import CODES, documents, names
from in_memory import assert_exact

import colbert_fast as cf


def queries(dim: int = 8) -> list[torch.Tensor]:
    return [torch.randn(length, dim) for length in (3, 1, 6)]


@pytest.mark.parametrize("exact", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("codes", CODES)
def test_documents_that_come_and_go_are_searched_exactly(tmp_path: Path, codes: str, exact: str) -> None:
    given = documents(90)
    kept = [tokens.to(getattr(torch, exact)) for tokens in given]
    asked = queries()
    with cf.Collection(tmp_path / "c", codes=codes, exact=exact) as collection:
        for first in (0, 30, 60):
            collection.add(names(30, first), given[first : first + 30])
        collection.delete(["d3", "d40", "d41"])
        gone = [3, 40, 41]
        result = collection.topk(asked, 10)
        assert result.certified
        assert_exact(result, asked, kept, 10, gone=gone)
        collection.compact()
        assert_exact(collection.topk(asked, 10), asked, kept, 10, gone=gone)
    with cf.Collection(tmp_path / "c", read_only=True) as again:
        assert_exact(again.topk(asked, 10), asked, kept, 10, gone=gone)
        assert again.recall(asked, 10, 87) == 1


def test_a_compiled_program_may_use_a_collection(tmp_path: Path) -> None:
    asked = torch.randn(3, 8)
    with cf.Collection(tmp_path / "c") as collection:

        def program(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float, int]:
            q = 2 * q
            added = collection.add(["q"], [q], replace=True)
            scores, _ = collection.topk(q, 5)
            return scores + added, collection["q"] + q, collection.recall(q, 3, 20), added

        collection.add(names(40), documents(40))
        expected = program(asked)
        scores, tokens, share, added = torch.compile(program, backend="eager")(asked)
        assert torch.equal(scores, expected[0])
        assert torch.equal(tokens, expected[1])
        assert (share, added) == expected[2:]


def test_a_condition_and_ids_say_what_is_searched(tmp_path: Path) -> None:
    given = documents(20)
    asked = queries()
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(names(20), given, [{"lang": "en" if i % 3 else "de", "year": 2000 + i} for i in range(20)])
        english = collection.topk(asked, 5, where="lang = ?", parameters=["en"])
        assert_exact(english, asked, given, 5, gone=range(0, 20, 3))
        some = collection.topk(asked, 5, among=["d7", "d2", "d7"])
        assert_exact(some, asked, given, 5, gone=[i for i in range(20) if i not in (2, 7)])
        both = collection.topk(asked, 5, where="year > 2004", among=["d7", "d2"])
        assert both.ids == [["d7", None, None, None, None]] * 3
        none = collection.topk(asked, 5, where="year > 3000")
        assert none.ids == [[None] * 5] * 3
        assert collection.topk(asked, 5, among=[]).ids == none.ids
        assert collection.recall(asked, 5, 13, where="lang = 'en'") == 1
        with pytest.raises(KeyError, match="no document 'x'"):
            collection.topk(asked, 5, among=["d7", "x"])
        with pytest.raises(KeyError, match="no document 'x'"):
            collection.recall(asked, 5, 6, among=["x"])


def test_a_search_sees_one_state(tmp_path: Path) -> None:
    given = documents(20)
    asked = queries()
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(names(10), given[:10])
        with cf.Collection(tmp_path / "c", read_only=True) as reader:
            collection.add(names(10, 10), given[10:])
            collection.delete(["d1"])
            assert_exact(reader.topk(asked, 10), asked, given[:10], 10)
            reader.refresh()
            assert_exact(reader.topk(asked, 10), asked, given, 10, gone=[1])


def test_without_exact_tokens_topk_finds_the_best_codes(tmp_path: Path) -> None:
    asked = queries()
    with cf.Collection(tmp_path / "c", codes="int4+4", exact=None) as collection:
        collection.add(names(30), documents(30))
        decoded = [collection[name] for name in names(30)]
        for candidates in (None, 30):
            result = collection.topk(asked, 5, candidates=candidates)
            assert result.certified == (candidates is None)
            assert_exact(result, asked, decoded, 5)


def test_a_new_collection_finds_nothing(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        assert collection.topk(queries(), 2).ids == [[None, None]] * 3
