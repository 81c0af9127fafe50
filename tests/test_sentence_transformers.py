"""maxsim and maxsim_pairwise instead of those in sentence_transformers.util: the same arguments, the same scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_close, assert_scores, embeddings, planted
from sentence_transformers import util
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference

DIM = 12
LAYOUTS = [
    "list",
    "list-numpy",
    "list-python",
    "list-mixed",
    "list-mask",
    "zeros",
    "zeros-numpy",
    "mask-bool",
    "mask-float",
    "mask-int",
    "mask-numpy",
    "mask-list",
    "mask-left",
    "mask-holes",
]


def laid_out(layout: str, items: list[Tensor]) -> tuple[Any, Any]:
    """The items in a layout that sentence-transformers takes, and its mask or None."""
    if layout == "list":
        return items, None
    if layout == "list-numpy":
        return [item.numpy() for item in items], None
    if layout == "list-python":
        return [item.tolist() for item in items], None
    if layout == "list-mixed":
        forms: list[Callable[[Tensor], Any]] = [Tensor.clone, Tensor.numpy, Tensor.tolist]
        return [forms[i % 3](item) for i, item in enumerate(items)], None
    longest = max(len(item) for item in items)
    masks = [torch.ones(len(item)) for item in items]
    if layout == "list-mask":  # the mask drops tokens besides the padding: give it tokens to drop
        longer = [torch.cat([item[:1] * 9, item]) for item in items]
        return longer, [torch.cat([torch.zeros(1), mask]) for mask in masks]
    if layout.startswith("zeros"):
        zeros = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        return (zeros.numpy() if layout == "zeros-numpy" else zeros), None
    # Padding that would win if it were a token. Finite: theirs multiplies masked query tokens by 0.
    padded = torch.full((len(items), longest + 2, items[0].shape[1]), 9.0)
    keep = torch.zeros(len(items), longest + 2, dtype=torch.bool)
    for i, item in enumerate(items):
        where = torch.arange(len(item))
        if layout == "mask-left":
            where += longest + 2 - len(item)
        elif layout == "mask-holes":
            where = torch.randperm(longest + 2)[: len(item)].sort().values
        padded[i, where] = item
        keep[i, where] = True
    mask = {"mask-float": keep.float(), "mask-int": keep.int(), "mask-numpy": keep.numpy(), "mask-list": list(keep)}
    return padded, mask.get(layout, keep)


def assert_drop_in(backend: str, a: Any, b: Any, a_mask: Any = None, b_mask: Any = None, **options: Any) -> None:
    """Ours equal theirs: all pairs, and in pairs where there are equally many items."""
    names = ["maxsim", "maxsim_pairwise"] if len(a) == len(b) else ["maxsim"]
    for name in names:
        expected = getattr(util, name)(a, b, a_mask, b_mask, **options)
        actual = getattr(cf, name)(a, b, a_mask, b_mask, **options, backend=backend)
        assert (actual.shape, actual.dtype, actual.device) == (expected.shape, expected.dtype, expected.device)
        assert_close(actual, expected)


def batch() -> tuple[list[Tensor], list[Tensor]]:
    queries = embeddings([3, 7, 5], DIM)
    return queries, planted(queries, embeddings([6, 19, 2], DIM))


@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_signature_starts_with_theirs(name: str) -> None:
    ours = inspect.signature(getattr(cf, name)).parameters
    theirs = inspect.signature(getattr(util, name)).parameters
    assert [(p.name, p.default) for p in ours.values()][: len(theirs)] == [(p.name, p.default) for p in theirs.values()]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in list(ours.values())[len(theirs) :])


@pytest.mark.parametrize("length_normalize", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(backend: str, layout: str, length_normalize: bool) -> None:
    queries, documents = batch()
    a, a_mask = laid_out(layout, queries)
    for other in {layout, "list", "zeros", "mask-holes"}:
        b, b_mask = laid_out(other, documents)
        assert_drop_in(backend, a, b, a_mask, b_mask, length_normalize=length_normalize)


@pytest.mark.parametrize("form", [Tensor.clone, Tensor.numpy], ids=["tensor", "numpy"])
def test_singular_inputs_score_as_batch_of_one(backend: str, form: Callable[[Tensor], Any]) -> None:
    q, d = (form(item) for item in embeddings([5, 7], DIM))
    a_mask, b_mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]), torch.arange(7) % 3 != 0
    for name in ("maxsim", "maxsim_pairwise"):
        theirs, ours = getattr(util, name), getattr(cf, name)
        assert ours(q, d, backend=backend).shape == theirs(q, d).shape
        assert_close(ours(q, d, backend=backend), theirs(q, d))
        for masks in ((a_mask, None), (None, b_mask), (a_mask, b_mask)):
            assert_close(ours(q, d, *masks, backend=backend), theirs(q, d, *masks))
    many = embeddings([3, 9], DIM)
    assert_close(cf.maxsim(q, many, backend=backend), util.maxsim(q, many))
    assert_close(cf.maxsim(many, d, backend=backend), util.maxsim(many, d))


@pytest.mark.parametrize("listed", [False, True], ids=["padded", "list"])
def test_one_mask_row_serves_every_item(backend: str, listed: bool) -> None:
    a, b = torch.stack(embeddings([4, 4, 4], DIM)), torch.stack(embeddings([6, 6, 6], DIM))
    a_mask, b_mask = torch.tensor([[True, False, True, True]]), torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    for masks in ((a_mask, None), (None, b_mask), (a_mask, b_mask)):
        assert_drop_in(backend, list(a) if listed else a, list(b) if listed else b, *masks)


def test_per_item_mask_lists_match_padded_masks(backend: str) -> None:
    queries, documents = batch()
    masks = [torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), torch.arange(19) % 4 != 1, torch.tensor([0, 1])]
    padded = torch.nn.utils.rnn.pad_sequence([mask.float() for mask in masks], batch_first=True)
    assert_drop_in(backend, queries, documents, b_mask=[mask.float() for mask in masks])
    assert_drop_in(backend, queries, documents, b_mask=padded)


def test_negative_similarities_survive_padding(backend: str) -> None:
    q, documents = -embeddings([4], DIM)[0].abs(), [d.abs() for d in embeddings([2, 6, 3], DIM)]
    for layout in LAYOUTS:
        b, b_mask = laid_out(layout, documents)
        scores = cf.maxsim([q], b, b_mask=b_mask, backend=backend)
        assert (scores < 0).all()
        assert_drop_in(backend, [q], b, b_mask=b_mask)


def test_zero_rows_are_padding_on_either_side(backend: str) -> None:
    queries, documents = batch()
    for signs in ((1, 1), (-1, 1), (1, -1)):
        q_items, d_items = ([sign * item.abs() for item in x] for sign, x in zip(signs, batch(), strict=True))
        a, b = (torch.nn.utils.rnn.pad_sequence(items, batch_first=True) for items in (q_items, d_items))
        a[1, 2], b[1, 0], b[1, 9] = 0.0, 0.0, 0.0  # and in the middle of an item
        for length_normalize in (False, True):
            assert_drop_in(backend, a, b, length_normalize=length_normalize)
            assert_drop_in(backend, a, documents, length_normalize=length_normalize)
            assert_drop_in(backend, queries, b.numpy(), length_normalize=length_normalize)
            assert_drop_in(backend, a[0], b[0], length_normalize=length_normalize)


def test_a_mask_makes_zero_rows_tokens(backend: str) -> None:
    a, b = -torch.stack(embeddings([4, 4], DIM)).abs(), torch.stack(embeddings([5, 5], DIM)).abs()
    b[0, 3], a[1, 0] = 0.0, 0.0
    everything = torch.ones(2, 5, dtype=torch.bool)
    assert (cf.maxsim(a, b, b_mask=everything, backend=backend)[:, 0] == 0).all()
    assert_drop_in(backend, a, b, b_mask=everything)
    assert_drop_in(backend, a, b, torch.ones(2, 4), everything, length_normalize=True)


def test_length_normalize_denominator_follows_the_scoring_mask(backend: str) -> None:
    """A zero row counts as a token in a list or under a mask, and does not in a bare 3-D tensor."""
    q = embeddings([5], DIM)[0]
    q[2] = 0.0
    document = embeddings([6], DIM)
    plain = reference.maxsim([q], document)
    for a, a_mask, tokens in (([q], None, 5), (q[None], None, 4), (q[None], torch.ones(1, 5), 5)):
        assert_close(cf.maxsim(a, document, a_mask, length_normalize=True, backend=backend), plain / tokens)
        assert_drop_in(backend, a, document, a_mask, length_normalize=True)


@pytest.mark.parametrize("chunk_elements", [1, 100, 400, 10**9])
def test_scores_are_independent_of_chunk_elements(backend: str, chunk_elements: int) -> None:
    queries, documents = batch()
    for layout in ("list", "zeros", "mask-holes", "mask-list"):
        a, a_mask = laid_out(layout, queries)
        b, b_mask = laid_out(layout, documents)
        assert_drop_in(backend, a, b, a_mask, b_mask, chunk_elements=chunk_elements)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)],
)
@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_device_is_a_pure_compute_knob(name: str, device: str) -> None:
    queries, documents = batch()
    expected = getattr(cf, name)(queries, documents)
    for chunk_elements in (None, 1, 100):
        scores = getattr(cf, name)(queries, documents, device=device, chunk_elements=chunk_elements)
        assert scores.device.type == "cpu"
        assert_close(scores, expected)
        normalized = getattr(cf, name)(queries, documents, None, None, chunk_elements, True, torch.device(device))
        assert_close(normalized, getattr(util, name)(queries, documents, None, None, chunk_elements, True))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_accumulates_in_float32(backend: str, dtype: torch.dtype) -> None:
    """Compares with float64: the einsum of sentence-transformers rounds every similarity to the dtype of the inputs."""
    queries = embeddings([32, 20], 64, dtype)
    near = torch.randn(20, 64)
    documents = [torch.nn.functional.normalize(near + 0.02 * torch.randn(20, 64), dim=-1).to(dtype) for _ in range(64)]
    scores = cf.maxsim(queries, torch.stack(documents), backend=backend)
    assert_scores(scores, queries, documents)
    assert scores[0].unique().numel() > 2 * scores[0].to(torch.bfloat16).unique().numel()
    pairwise = cf.maxsim_pairwise(queries, documents[:2], backend=backend)
    assert_close(pairwise, reference.maxsim(queries, documents[:2]).diagonal())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64], ids=str)
def test_integer_embeddings_upcast(backend: str, dtype: torch.dtype) -> None:
    queries = [torch.randint(-9, 9, (n, DIM), dtype=dtype) for n in (3, 4)]
    documents = [torch.randint(-9, 9, (n, DIM), dtype=dtype) for n in (5, 2)]
    for form in (list, lambda items: [item.tolist() for item in items]):
        assert_drop_in(backend, form(queries), form(documents))
    pad = torch.nn.utils.rnn.pad_sequence
    assert_drop_in(backend, pad(queries, batch_first=True), pad(documents, batch_first=True).numpy())


@pytest.mark.parametrize("form", [list, np.asarray, torch.tensor], ids=["python", "numpy", "torch"])
def test_ragged_list_entry_types(backend: str, form: Callable[[Any], Any]) -> None:
    queries = [form([[1.0, 0.0], [0.0, 1.0]])]
    documents = [form([[0.75, 0.5]]), form([[0.25, 0.5], [0.5, 0.25]])]
    if form is np.asarray:
        queries, documents = ([item.astype(np.float32) for item in side] for side in (queries, documents))
    assert cf.maxsim(queries, documents, backend=backend).tolist() == [[1.25, 1.0]]


@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_mismatched_mask_width_raises(name: str) -> None:
    a, b = torch.randn(3, 4, DIM), torch.randn(3, 5, DIM)
    for width in (2, 7):
        for masks in ({"a_mask": torch.ones(3, width)}, {"b_mask": [torch.ones(width)] * 3}):
            with pytest.raises(ValueError, match=next(iter(masks))):
                getattr(cf, name)(a, b, **masks)
    with pytest.raises(TypeError, match="a_mask"):
        getattr(cf, name)(a, b, a_mask="not a mask")


def test_pairwise_length_mismatch_raises() -> None:
    queries, documents = embeddings([3] * 5, DIM), embeddings([4] * 3, DIM)
    for a, b in ((queries, documents), (documents, queries), ([], documents), (queries, [])):
        with pytest.raises(ValueError, match=f"got {len(a)} and {len(b)}"):
            cf.maxsim_pairwise(a, b)


def assert_sentinel(backend: str, a: Any, b: Any, empty: Any, **options: Any) -> None:
    """The documents `empty` score -1e9 with one warning, the others as theirs."""
    for name in ["maxsim", "maxsim_pairwise"] if len(a) == len(b) else ["maxsim"]:
        with pytest.warns(UserWarning, match="without a token") as warned:
            scores = getattr(cf, name)(a, b, **options, backend=backend)
        assert len(warned) == 1
        assert (scores[..., empty] == -1e9).all()
        assert_close(scores, getattr(util, name)(a, b, **options))


def test_fully_masked_document_scores_sentinel(backend: str) -> None:
    a, b = torch.stack(embeddings([4, 4, 4], DIM)), torch.stack(embeddings([5, 5, 5], DIM))
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[1] = False
    for mask in (keep, keep.float(), list(keep), keep.numpy()):
        assert_sentinel(backend, a, b, [1], b_mask=mask)
        assert_sentinel(backend, a, list(b), [1], b_mask=mask)
    assert_sentinel(backend, a, b, [1], b_mask=keep, chunk_elements=1)
    assert_sentinel(backend, a, b, [0, 1, 2], b_mask=torch.zeros(1, 5), a_mask=torch.zeros(3, 4))


def test_empty_document_scores_sentinel(backend: str) -> None:
    queries, documents = batch()
    documents[1] = documents[1][:0]
    assert_sentinel(backend, queries, documents, [1])
    assert_sentinel(backend, [item.numpy() for item in queries], [item.numpy() for item in documents], [1])
    assert_sentinel(backend, queries[:2], torch.zeros(3, 0, DIM), [0, 1, 2])
    assert_sentinel(backend, queries, torch.nn.utils.rnn.pad_sequence(documents, batch_first=True), [1])
    assert_sentinel(backend, torch.zeros(3, 4, DIM), torch.zeros(3, 4, DIM), [0, 1, 2])


def test_empty_query_scores_zero(backend: str) -> None:
    queries, documents = batch()
    queries[1] = queries[1][:0]
    padded = torch.nn.utils.rnn.pad_sequence(queries, batch_first=True)
    for a in (queries, queries[1:2], torch.zeros(2, 0, DIM), padded):
        assert_drop_in(backend, a, documents)
        assert_drop_in(backend, a, documents, length_normalize=True)
    assert_drop_in(backend, torch.randn(3, 2, DIM), documents, torch.tensor([[1, 1], [0, 0], [1, 0]]))


def test_empty_set_returns_empty_scores(backend: str) -> None:
    queries = embeddings([3, 2], DIM)
    for nothing in ([], torch.zeros(0, 4, DIM), torch.zeros(0, 0, DIM)):
        assert_drop_in(backend, queries, nothing)
        assert_drop_in(backend, nothing, queries)
        assert_drop_in(backend, nothing, torch.randn(2, 3, DIM), length_normalize=True)
        assert_drop_in(backend, nothing, [])
        assert_drop_in(backend, [], nothing)


def gradients(
    function: Callable[..., Tensor], queries: Any, documents: Any, weight: Tensor, **options: Any
) -> list[Tensor]:
    """Return the gradients of the weighted sum of the scores to every tensor in queries and documents."""
    sides = []
    for side in (queries, documents):
        leaves = [item.clone().requires_grad_() for item in (side if isinstance(side, list) else [side])]
        sides.append((leaves, leaves if isinstance(side, list) else leaves[0]))
    scores = function(sides[0][1], sides[1][1], **options)
    (scores * weight.view(scores.shape)).sum().backward()
    return [leaf.grad for leaves, _ in sides for leaf in leaves]


@pytest.mark.parametrize("layout", ["list", "zeros", "mask-bool", "mask-left", "mask-holes", "list-mask"])
@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_gradients_equal_autograd_through_theirs(backend: str, name: str, layout: str) -> None:
    queries, documents = batch()
    a, a_mask = laid_out(layout, queries)
    b, b_mask = laid_out(layout, [-d.abs() for d in documents])  # zero rows and padding would win
    masks = {"a_mask": a_mask, "b_mask": b_mask}
    weight = torch.randn(9) if name == "maxsim" else torch.randn(3)
    for normalize in (False, True):
        options = {**masks, "length_normalize": normalize}
        ours = gradients(getattr(cf, name), a, b, weight, **options, backend=backend)
        theirs = gradients(getattr(util, name), a, b, weight, **options)
        for actual, expected in zip(ours, theirs, strict=True):
            assert actual.shape == expected.shape
            assert_close(actual, expected)


def test_empty_document_score_survives_the_losses_that_consume_it(backend: str) -> None:
    a, positive, negative = (torch.randn(2, 5, DIM, requires_grad=True) for _ in range(3))
    keep = torch.tensor([[True] * 5, [False] * 5])
    with pytest.warns(UserWarning, match="without a token"):
        scores = cf.maxsim(a, negative, b_mask=keep, backend=backend)
    for scale in (1.0, 20.0):
        for targets in ([0, 1], [1, 1], [0, 0]):
            assert torch.nn.functional.cross_entropy(scores * scale, torch.tensor(targets)).isfinite()
    with pytest.warns(UserWarning, match="without a token"):
        empty = cf.maxsim_pairwise(a, negative, b_mask=torch.zeros(2, 5), backend=backend)
    loss = (cf.maxsim_pairwise(a, positive, backend=backend) - empty - 1).square().mean()
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite().all() and positive.grad.isfinite().all()
    assert (negative.grad == 0).all()


# torch.compile makes an instance of every autograd.Function that it traces, and then warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("masks", ["none", "both", "list"])
@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])  # the traced programs differ only in the name of the tier
def test_takes_no_data_dependent_branch(backend: str, name: str, masks: str, grad: bool) -> None:
    torch._dynamo.reset()
    a, b = torch.randn(3, 4, DIM), torch.randn(3, 6, DIM)
    a[1, 2:], b[0, 4:] = 0.0, 0.0
    keep = torch.rand(3, 6) < 0.6
    keep[:, 0] = True
    options: dict[str, Any] = {"backend": backend, "length_normalize": True}
    if masks != "none":
        options["a_mask"] = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
        options["b_mask"] = keep if masks == "both" else list(keep.float())
    function = getattr(cf, name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    if not grad:
        assert_close(compiled(a, b, **options), function(a, b, **options))
        return
    weight = torch.randn(9 if name == "maxsim" else 3)
    for actual, expected in zip(
        gradients(compiled, a, b, weight, **options), gradients(function, a, b, weight, **options), strict=True
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_fully_masked_document_scores_sentinel_when_compiled(backend: str) -> None:
    torch._dynamo.reset()
    a, b, keep = torch.randn(2, 4, DIM), torch.randn(3, 5, DIM), torch.ones(3, 5, dtype=torch.bool)
    keep[1] = False
    compiled = torch.compile(cf.maxsim, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="without a token"):
        scores = compiled(a, b, b_mask=keep, backend=backend)
    assert (scores[:, 1] == -1e9).all()
    assert_close(scores, util.maxsim(a, b, b_mask=keep))
