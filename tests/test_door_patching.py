"""The doors to PyLate and colpali-engine without these libraries: the patch, on a toy library, and the arguments."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cases import assert_close, embeddings
from torch.nn.utils.rnn import pad_sequence

import colbert_fast as cf
from colbert_fast.integrations import _padding, _patching, colpali, pylate
from colbert_fast.integrations._patching import Patch

SCORES = """
def score(x):
    return "theirs", x

def untouched(x):
    return x

class Scorer:
    def __call__(self, x):
        return score(x)

    @staticmethod
    def static(x):
        return "static", x
"""
USER = """
import enum, functools
import torch
from toy.scores import Scorer, score, score as renamed, untouched

def by_default(x, f=score):
    return f(x)

def by_keyword(x, *, f=score):
    return f(x)

def decorated(function):
    @functools.wraps(function)
    def around(x):
        return function(x)
    return around

@decorated
def by_decorated(x, f=score):
    return f(x)

def refers_to_itself(x, *, f=score, itself=None):
    return f(x)

refers_to_itself.__kwdefaults__["itself"] = refers_to_itself

class Metric(enum.Enum):
    FIRST = ("first", score)
    SECOND = ("second", score, ["a value without a hash"])

    @property
    def function(self):
        return self.value[1]

class Loss(torch.nn.Module):
    def __init__(self, f=score):
        super().__init__()
        self.f = f

class Holder:
    f = staticmethod(score)

PARTIAL = functools.update_wrapper(functools.partial(score), score)
TUPLE = (score, 1)
METRICS = {"score": score}
LIST = [score]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A library `toy` with a scoring function, a module that has captured it, and the patch."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("from toy.scores import score\n")
    (tmp_path / "toy" / "scores.py").write_text(SCORES)
    (tmp_path / "user_before.py").write_text(USER)
    (tmp_path / "user_meanwhile.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    user = importlib.import_module("user_before")
    scores = sys.modules["toy.scores"]
    replacements = {
        scores.score: lambda x: ("ours", x),
        scores.Scorer.static: lambda x: ("our static", x),
    }
    yield SimpleNamespace(scores=scores, user=user, patch=Patch(lambda: replacements), before=scores.score)
    for name in ("toy", "toy.scores", "user_before", "user_meanwhile"):
        sys.modules.pop(name, None)


def answers(user: ModuleType) -> set[str]:
    """What all references of the module to the function answer."""
    calls = [
        user.score,
        user.renamed,
        user.by_default,
        user.by_keyword,
        user.by_decorated,
        user.Scorer(),
        user.Metric.FIRST.function,
        user.Metric.SECOND.function,
        user.PARTIAL,
        user.Loss().f,
        user.Holder.f,
        user.Holder().f,
        user.METRICS["score"],
        user.LIST[0],
        user.TUPLE[0],
    ]
    assert all(call(3)[1] == 3 for call in calls)
    return {call(3)[0] for call in calls}


def test_every_reference_is_replaced_and_restored(toy: SimpleNamespace) -> None:
    loss, first = toy.user.Loss(), toy.user.Metric.FIRST
    assert answers(toy.user) == {"theirs"}
    with toy.patch.active():
        assert answers(toy.user) == {"ours"}
        assert loss.f(1) == ("ours", 1)
        assert toy.user.Scorer.static(1) == toy.user.Scorer().static(1) == ("our static", 1)
        assert toy.user.untouched(5) == 5
        assert toy.user.Metric(first.value) is first
        assert toy.scores.score.__name__ == "score"
        made_inside = toy.user.Loss()
        kept = toy.scores.score
    assert answers(toy.user) == {"theirs"}
    assert toy.user.Scorer.static(1) == ("static", 1)
    assert toy.user.Metric(first.value) is first
    # Not only what it answers, but the function itself.
    for f in (toy.user.score, toy.user.by_default.__defaults__[0], toy.user.METRICS["score"], loss.f, made_inside.f):
        assert f is toy.before
    assert kept(1) == ("theirs", 1)


def test_what_holds_a_function_is_the_same_object_again(toy: SimpleNamespace) -> None:
    """Also a static method, a partial function, and the tuples of default arguments and of an enum."""
    loss = toy.user.Loss(toy.user.PARTIAL)

    def holders() -> list[Any]:
        return [
            toy.user.PARTIAL,
            loss.f,
            toy.user.TUPLE,
            vars(toy.user.Holder)["f"],
            vars(toy.scores.Scorer)["static"],
            toy.user.by_default.__defaults__,
            *(member.value for member in toy.user.Metric),
            *toy.user.Metric._value2member_map_,
        ]

    before = holders()
    for _ in range(2):
        with toy.patch.active():
            assert not any(new is old for new, old in zip(holders(), before, strict=True))
            assert toy.user.PARTIAL is loss.f and toy.user.PARTIAL.__name__ == "score"
        assert all(new is old for new, old in zip(holders(), before, strict=True))


def test_a_module_imported_meanwhile_is_restored(toy: SimpleNamespace) -> None:
    with toy.patch.active():
        user = importlib.import_module("user_meanwhile")
        assert answers(user) == {"ours"}
    assert answers(user) == {"theirs"}
    assert user.score is toy.before
    with toy.patch.active():
        assert answers(user) == {"ours"}


def test_blocks_nest(toy: SimpleNamespace) -> None:
    with toy.patch.active():
        with toy.patch.active():
            assert answers(toy.user) == {"ours"}
        assert answers(toy.user) == {"ours"}
    assert toy.user.score is toy.before


def test_an_exception_restores(toy: SimpleNamespace) -> None:
    with pytest.raises(KeyboardInterrupt), toy.patch.active():
        raise KeyboardInterrupt
    assert toy.user.score is toy.before


def test_a_walk_that_fails_restores(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first walk is interrupted after half of its work, and the block is not entered."""
    swap, calls = _patching._swap_everywhere, []

    def interrupted(pairs: Any, made: Any) -> None:
        swap(pairs, made)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(_patching, "_swap_everywhere", interrupted)
    with pytest.raises(KeyboardInterrupt), toy.patch.active():
        pytest.fail("the block was entered")
    assert toy.user.score is toy.before


def test_a_walk_back_that_fails_restores(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk at the end is interrupted before its work. The names and the objects are restored all the same."""
    swap, calls, partial = _patching._swap_everywhere, [], toy.user.PARTIAL

    def interrupted(pairs: Any, made: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        swap(pairs, made)

    monkeypatch.setattr(_patching, "_swap_everywhere", interrupted)
    with pytest.raises(KeyboardInterrupt), toy.patch.active():
        assert answers(toy.user) == {"ours"}
    assert answers(toy.user) == {"theirs"}
    assert toy.user.score is toy.before and toy.user.PARTIAL is partial


def test_a_block_that_was_not_entered_is_restored_by_the_next(toy: SimpleNamespace) -> None:
    """Ctrl-C came after the first walk, so that the library's own name holds a stand-in."""
    patch = Patch(lambda: {toy.scores.score: lambda x: ("ours", x)})
    patch._begin()
    assert toy.scores.score is not toy.before
    assert answers(toy.user) == {"theirs"}
    with patch.active():
        assert answers(toy.user) == {"ours"}
    assert toy.scores.score is toy.user.score is toy.before


def test_a_decorated_function(toy: SimpleNamespace) -> None:
    @toy.patch.active()
    def scored(x: int) -> Any:
        return toy.scores.score(x)

    assert scored(2) == scored(2) == ("ours", 2)
    assert toy.scores.score is toy.before


def test_what_others_put_there_stays(toy: SimpleNamespace) -> None:
    with toy.patch.active():
        toy.user.score = mine = len
    assert toy.user.score is mine
    assert toy.user.renamed is toy.before


def test_blocks_of_several_threads(toy: SimpleNamespace) -> None:
    """The patch ends with the last block of any thread."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with toy.patch.active():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with toy.patch.active():
        assert answers(toy.user) == {"ours"}
    assert answers(toy.user) == {"ours"}
    leave.set()
    thread.join()
    assert toy.user.score is toy.before


@pytest.mark.parametrize(
    ("door", "name", "module"),
    [(pylate, "pylate>=1.6", "pylate"), (colpali, "colpali-engine>=0.3.18", "colpali_engine")],
)
def test_a_missing_library(door: Any, name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"\.{door.__name__.rpartition('.')[2]}\.patched\(\) needs .* pip install '{name}'$"
    with pytest.raises(ImportError, match=message), door.patched():
        pytest.fail("the block was entered")


def test_masks_leave_the_tensors_as_they_are() -> None:
    q, d = -torch.ones(1, 2, 4), torch.ones(2, 3, 4)
    d[1, 2] = 100
    mask = torch.tensor([[True, True, True], [True, True, False]])
    before = d.clone()
    for given in (mask, mask.float(), mask.int(), mask.numpy(), mask.tolist(), list(mask), list(mask.numpy())):
        # The masked token wins with its similarity of 0.
        assert_close(pylate.colbert_scores(q, d, documents_mask=given), torch.tensor([[-8.0, 0.0]]))
    assert torch.equal(d, before)
    weighted = pylate.colbert_scores(q, d[:1], torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert_close(weighted, torch.tensor([[-6.0]]))
    # A fully masked document, a fully masked query, and nothing at all.
    assert pylate.colbert_scores(q, d, documents_mask=mask & False).tolist() == [[0, 0]]
    assert pylate.colbert_scores(q, d[:1], queries_mask=torch.zeros(1, 2)).item() == 0
    assert pylate.colbert_scores(q, d[:0], documents_mask=mask[:0]).shape == (1, 0)


def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    q, d, mask = torch.randn(2, 3, 8), torch.randn(7, 5, 8), torch.rand(7, 5) < 0.6
    expected = pylate.colbert_scores(q, d, documents_mask=mask)
    for elements in (1, 40, 100, 10**6):
        monkeypatch.setattr(_padding, "_PIECE_ELEMENTS", elements)
        for given in (mask, mask[:1].expand(7, 5)):
            found = pylate.colbert_scores(q, d, documents_mask=given)
            assert torch.equal(found, expected) is (given is mask)
            assert torch.equal(found, cf.maxsim(q, d * given[..., None], pad="zero"))
        # The pieces share their memory, which must not be so where a gradient needs them later.
        masked = d * mask[..., None]
        for queries in (q.clone().requires_grad_(), [item.clone().requires_grad_() for item in q]):
            leaves = queries if isinstance(queries, list) else [queries]
            scores = pylate.colbert_scores(queries, d, documents_mask=mask), cf.maxsim(queries, masked, pad="zero")
            ours, theirs = (torch.autograd.grad(s.sum(), leaves) for s in scores)
            assert all(map(torch.equal, ours, theirs))


def test_candidates_and_groups() -> None:
    q, d = torch.randn(2, 4, 8), torch.randn(2, 3, 5, 8)
    expected = torch.stack([cf.maxsim(q[i : i + 1], d[i])[0] for i in range(2)])
    assert torch.equal(pylate.colbert_kd_scores(q, d), expected)
    for backend in ("auto", "AUTO", "torch"):
        assert_close(pylate.colbert_kd_scores(q, d, backend=backend), expected)
    assert torch.equal(colpali.maxsim_kd(q, d), expected)
    # One query with the candidates of all, and all queries with the candidates of one.
    masks = torch.rand(2, 4) < 0.7, torch.rand(2, 3, 5) < 0.7
    for one in ((q[:1], d), (q, d[:1])):
        repeated = q[:1].expand_as(q) if len(one[0]) == 1 else q, d[:1].expand_as(d) if len(one[1]) == 1 else d
        assert torch.equal(colpali.maxsim_kd(*one), colpali.maxsim_kd(*repeated))
        assert torch.equal(pylate.colbert_kd_scores(*one, *masks), pylate.colbert_kd_scores(*repeated, *masks))
    assert colpali.maxsim_kd(q[:1], d[:0]).shape == (0, 3)
    assert torch.equal(pylate.ColBERTScores()(list(q), list(d)), cf.maxsim(q, d.flatten(0, 1)))
    assert pylate.colbert_kd_scores(q, d[:, :0]).shape == (2, 0)


def test_rerank_with_empty_candidate_lists() -> None:
    queries, documents = embeddings([3, 4, 2], 8), embeddings([6, 5, 7], 8)
    found = pylate.rerank([["a", "b"], [], [7]], queries, [documents[:2], [], [documents[2].numpy()]])
    assert [[result["id"] for result in results] for results in found[1:]] == [[], [7]]
    assert sorted(result["id"] for result in found[0]) == ["a", "b"]
    assert found[0][0]["score"] >= found[0][1]["score"]
    assert pylate.rerank([[1]], queries[0], [[documents[0]]])[0][0]["id"] == 1
    assert pylate.rerank([], [], []) == []
    # Ties keep the order given.
    twice = pylate.rerank([[2, 1, 3]], queries[:1], [[documents[0]] * 3])
    assert [result["id"] for result in twice[0]] == [2, 1, 3]


def test_the_score_of_a_page_depends_on_its_batch() -> None:
    """To colpali-engine. With padding="skip" it does not."""
    query, page, longer = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]] * 2)
    assert colpali.score_multi_vector([query], [page]).tolist() == [[-1]]
    assert colpali.score_multi_vector([query], [page, longer]).tolist() == [[0, 1]]
    assert colpali.score_multi_vector([query], [page, longer], batch_size=1).tolist() == [[-1, 1]]
    assert colpali.score_multi_vector([query], [page, longer], padding="skip").tolist() == [[-1, 1]]
    padded = pad_sequence([page, longer], batch_first=True)
    assert colpali.score_multi_vector([query], padded, batch_size=1).tolist() == [[0, 1]]
    assert colpali.score_multi_vector([query], padded, padding="skip").tolist() == [[-1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_results_of_score_multi_vector(dtype: torch.dtype) -> None:
    queries, pages = embeddings([3, 4], 8, dtype), embeddings([6, 5, 7], 8, dtype)
    scores = colpali.score_multi_vector(queries, pages, batch_size=2)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 3)
    zero = torch.zeros(1, 8, dtype=dtype)
    assert_close(scores, cf.maxsim(queries, [pages[0], torch.cat([pages[1], zero]), pages[2]]))


def test_gradients_of_score_multi_vector() -> None:
    queries = [q.requires_grad_() for q in embeddings([3, 4], 8)]
    pages = [p.requires_grad_() for p in embeddings([6, 5], 8)]
    leaves = [*queries, *pages]
    ours = torch.autograd.grad(colpali.score_multi_vector(queries, pages).sum(), leaves)
    padded = [pad_sequence(side, batch_first=True) for side in (queries, pages)]
    theirs = torch.autograd.grad(torch.einsum("and,btd->abnt", *padded).amax(3).sum(), leaves)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


q3, d3, d4 = torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(2, 2, 5, 4)
BAD_CALLS = [
    (
        lambda: pylate.colbert_scores(q3, d3, documents_mask=torch.ones(2, 4)),
        ValueError,
        "documents_mask must be .2, 5",
    ),
    (lambda: pylate.colbert_scores(q3, d3, queries_mask=torch.ones(5)), ValueError, "queries_mask must be .2, 3"),
    (lambda: pylate.colbert_scores(q3, d3, backend="lik"), ValueError, "backend='lik' is one of PyLate"),
    (lambda: pylate.colbert_scores(q3, d3, backend="Flash"), ValueError, "backend='Flash' is one of PyLate"),
    (lambda: pylate.colbert_scores(q3, d3, backend="nope"), ValueError, "nope"),
    (lambda: pylate.colbert_scores([q3[0], q3[0, :1]], d3, torch.ones(2, 3)), ValueError, "one shape"),
    (lambda: pylate.colbert_scores_pairwise(q3, d3[:1]), ValueError, "same number of items"),
    (lambda: pylate.colbert_kd_scores(q3, d3), ValueError, r"documents_embeddings must be \[n, candidates"),
    (lambda: pylate.colbert_kd_scores(torch.ones(3, 3, 4), d4), ValueError, "in pairs; got 3 and 2"),
    (lambda: pylate.colbert_kd_scores("text", d4), TypeError, "queries_embeddings"),
    (lambda: pylate.rerank([[1]], q3, [d3]), ValueError, "one entry for each query; got 2, 1 and 1"),
    (lambda: pylate.rerank([[1], [2]], q3, [d3, d3]), ValueError, r"documents_ids\[0\] must hold one id"),
    (lambda: pylate.rerank([[1]], "text", [d3]), TypeError, "queries_embeddings must be a list"),
    (lambda: pylate.rerank([[1]], q3[:1], ["text"]), TypeError, r"documents_embeddings\[0\] must be a list"),
    (lambda: colpali.score_multi_vector([], d3), ValueError, "No queries provided"),
    (lambda: colpali.score_multi_vector(q3, []), ValueError, "No passages provided"),
    (lambda: colpali.score_multi_vector(q3, d3[:0]), ValueError, "No passages provided"),
    (lambda: colpali.score_multi_vector(q3[0], d3), ValueError, r"qs must be \[n, length, dim\]"),
    (lambda: colpali.score_multi_vector(q3, d3, padding="zero"), ValueError, 'padding must be "batch" or "skip"'),
    (lambda: colpali.score_multi_vector(q3, d3, batch_size=0), ValueError, "batch_size must be 1 or more"),
    (lambda: colpali.score_multi_vector(q3, [None]), TypeError, r"ps\[0\]"),
    (lambda: colpali.maxsim_inbatch(q3, d4), ValueError, "doc must be"),
    (lambda: colpali.maxsim_kd(q3, d3), ValueError, "doc must be"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
