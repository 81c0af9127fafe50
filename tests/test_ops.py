"""torch.ops.colbert_fast.*: the op contract and torch.compile."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast import packed


def arguments(dtype: torch.dtype = torch.float32, *, pairs: Tensor | None = None) -> tuple[Any, ...]:
    q = cf.PackedTokens.from_list([torch.randn(3, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)])
    d = cf.PackedTokens.from_list([torch.randn(4, 8, dtype=dtype), torch.randn(7, 8, dtype=dtype)])
    sides = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths, pairs)
    return (*sides, q.max_length, d.max_length, False, False, 2**24)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Every test compiles anew: recompilations of one function are counted over the whole process."""
    torch._dynamo.reset()


PAIRS = torch.tensor([[0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["all", "pairs"])
def test_opcheck(backend: str, pairs: Tensor | None) -> None:
    args = arguments(pairs=pairs)
    ops = torch.ops.colbert_fast
    for d_order in (None, torch.tensor([1, 0], dtype=torch.int32)):
        torch.library.opcheck(ops.score.default, (*args, backend), {"d_order": d_order})
        torch.library.opcheck(ops.score_argmax.default, (*args, backend), {"d_order": d_order})
    scores, argmax = ops.score_argmax(*args, backend)
    grad = torch.randn(scores.numel())
    for for_q, for_d in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops.backward.default, (*args, grad, argmax, for_q, for_d, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_fake_results_have_the_real_shapes_and_dtypes(dtype: torch.dtype) -> None:
    args = arguments(dtype)
    torch.library.opcheck(torch.ops.colbert_fast.score.default, (*args, None), test_utils="test_faketensor")
    torch.library.opcheck(torch.ops.colbert_fast.score_argmax.default, (*args, None), test_utils="test_faketensor")


def test_compile_forward_of_prebuilt_documents(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which have an order on a GPU."""
    monkeypatch.setattr(packed, "_ORDERED_ON", ("cuda", "cpu"))
    documents = cf.PackedTokens.from_list([torch.randn(n, 8) for n in (2, 9, 5)])
    queries = torch.randn(2, 3, 8)
    assert documents._order is not None
    expected = cf.maxsim(queries, documents, backend=backend)
    compiled = torch.compile(lambda q: cf.maxsim(q, documents, backend=backend), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries), expected)


def keep(n: int, length: int) -> Tensor:
    return torch.arange(length) <= torch.arange(n).unsqueeze(1) + 1


# torch itself makes an instance of an autograd.Function while it traces it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_forward_and_backward(backend: str, dynamic: bool) -> None:
    def loss(q: Tensor, d: Tensor, d_mask: Tensor) -> Tensor:
        scores = cf.maxsim(q, d, b_mask=d_mask, length_normalize=True, backend=backend)
        return scores.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for nd in (4, 5):
        q = torch.randn(3, 6, 8, requires_grad=True)
        d = torch.randn(nd, 7, 8, requires_grad=True)
        mask = keep(nd, 7)
        expected = loss(q, d, mask)
        expected_grads = torch.autograd.grad(expected, (q, d))
        actual = compiled(q, d, mask)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, (q, d)), expected_grads)


@pytest.mark.parametrize("function", ["padded", "packed", "list", "pairwise", "pairs"])
def test_compile_without_graph_breaks(function: str) -> None:
    q, d = torch.randn(3, 6, 8), torch.randn(3, 7, 8)
    packed = cf.PackedTokens.from_padded(d)
    pairs = torch.tensor([[0, 1], [2, 2]])
    functions = {
        "padded": lambda: cf.maxsim(q, d),
        "packed": lambda: cf.maxsim(q, packed),
        "list": lambda: cf.maxsim([q[0], q[1]], [d[0], d[1], d[2]]),
        "pairwise": lambda: cf.maxsim_pairwise(q, d),
        "pairs": lambda: cf.maxsim_pairs(q, packed, pairs),
    }
    run = functions[function]
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(), run())


def test_compiled_code_does_not_look_at_the_data() -> None:
    """Zero rows, which cost a second look at some documents, are found inside the op."""
    compiled = torch.compile(cf.maxsim, fullgraph=True, backend="aot_eager")
    q, d = torch.randn(2, 4, 8), -torch.rand(3, 5, 8)
    d[1, 2:] = 0
    torch.testing.assert_close(compiled(q, d), cf.maxsim(q, d))
    torch.testing.assert_close(compiled(q.abs(), d), cf.maxsim(q.abs(), d))
    assert (compiled(q.abs(), d) < 0).all()


def test_autocast_and_default_dtype_do_not_matter() -> None:
    q, d = torch.randn(2, 4, 8), torch.randn(3, 5, 8)
    expected = cf.maxsim(q, d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cf.maxsim(q, d), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(cf.maxsim(q, d), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_meta_tensors_give_meta_scores() -> None:
    scores = cf.maxsim(torch.ones(2, 3, 4, device="meta"), torch.ones(5, 6, 4, device="meta"))
    assert scores.shape == (2, 5)
    assert scores.device.type == "meta"


BAD_ARGUMENTS: dict[str, dict[int, torch.Tensor]] = {
    "q_starts": {1: torch.zeros(2, dtype=torch.int32)},
    "q_lengths": {2: torch.full((2, 1), 4)},
    "d_lengths": {6: torch.full((6,), 5)[::2]},
    "pairs": {7: torch.zeros(1, 2, dtype=torch.int32)},
    "argmax": {14: torch.zeros(1, 1, dtype=torch.int32)},
    "grad_scores": {13: torch.zeros(1)},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_a_direct_call_cannot_send_a_kernel_astray(name: str) -> None:
    q, d = torch.randn(8, 8), torch.randn(15, 8)
    offsets = (torch.tensor([0, 4]), torch.tensor([4, 4])), (torch.tensor([0, 5, 10]), torch.tensor([5, 5, 5]))
    sides: list[Any] = [q, *offsets[0], d, None, *offsets[1], None, 4, 5, False, False, 100]
    scores, argmax = torch.ops.colbert_fast.score_argmax(*sides, None)
    arguments = [*sides, torch.ones_like(scores).reshape(-1), argmax]
    assert torch.ops.colbert_fast.backward(*arguments, True, True, None)[0].shape == q.shape
    for position, value in BAD_ARGUMENTS[name].items():
        arguments[position] = value
    with pytest.raises(ValueError, match=f"{name} must be"):
        torch.ops.colbert_fast.backward(*arguments, True, True, None)
    if name not in ("argmax", "grad_scores"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            torch.ops.colbert_fast.score(*arguments[:13], None)


def unaligned(values: Tensor) -> Tensor:
    raw = bytearray(b"\0" + values.numpy().tobytes())
    return torch.frombuffer(raw, dtype=values.dtype, offset=1).view(values.shape)


def strided(values: Tensor) -> Tensor:
    return values.repeat_interleave(2)[::2]


ODD = {
    "meta": lambda t: t.to("meta"),
    "int32": lambda t: t.to(torch.int32),
    "float64": lambda t: t.double(),
    "strided": strided,
    "unaligned": unaligned,
    "shrunk": lambda t: t[:1].clone(),
    "grown": lambda t: torch.cat([t, t]),
    "another shape": lambda t: t.unsqueeze(0),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("name", "position"), [("q_starts", 1), ("d_scales", 4), ("d_starts", 5), ("d_lengths", 6)])
@pytest.mark.parametrize("backend", ["torch", None])
def test_odd_offsets_and_scales_are_refused(name: str, position: int, odd: str, backend: str | None) -> None:
    q, d = torch.randn(8, 8), torch.randint(-127, 128, (15, 8), dtype=torch.int8)
    offsets = (torch.tensor([0, 4]), torch.tensor([4, 4])), (torch.tensor([0, 5, 10]), torch.tensor([5, 5, 5]))
    sides: list[Any] = [q, *offsets[0], d, torch.rand(15), *offsets[1], None, 4, 5, False, False, 100]
    torch.ops.colbert_fast.score(*sides, backend)
    sides[position] = ODD[odd](sides[position])
    for op in (torch.ops.colbert_fast.score, torch.ops.colbert_fast.score_argmax):
        # Of starts and lengths of different numbers neither is the wrong one.
        with pytest.raises(ValueError, match=rf"({name}|{name[0]}_starts) must be"):
            op(*sides, backend)


@pytest.mark.parametrize("backend", ["torch", None])
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (3, torch.ones(15, 8, device="meta"), "must be [rows, dim] on one device; got q_tokens [8, 8] on cpu"),
        (0, torch.ones(8, 8, device="meta"), "q_starts must be contiguous torch.int64 [2] on meta; got torch.int64"),
        (3, torch.ones(15), "must be [rows, dim] on one device; got q_tokens [8, 8] on cpu, d_tokens [15] on cpu"),
        (7, torch.ones(1, 2, dtype=torch.int64, device="meta"), "pairs must be contiguous torch.int64 [1, 2] on cpu"),
        (8, 2**62, "max_lq must be from 0 to 8, the rows of q_tokens; got 4611686018427387904"),
        (8, -1, "max_lq must be from 0 to 8, the rows of q_tokens; got -1"),
        (9, 2**62, "max_ld must be from 0 to 15, the rows of d_tokens; got 4611686018427387904"),
        (12, 0, "chunk_elements must be 1 or more; got 0"),
    ],
)
def test_other_arguments_are_refused(position: int, value: Any, message: str, backend: str | None) -> None:
    offsets = (torch.tensor([0, 4]), torch.tensor([4, 4])), (torch.tensor([0, 5, 10]), torch.tensor([5, 5, 5]))
    sides: list[Any] = [torch.randn(8, 8), *offsets[0], torch.randn(15, 8), None, *offsets[1], None, 4, 5]
    sides += [False, False, 100]
    sides[position] = value
    for op in (torch.ops.colbert_fast.score, torch.ops.colbert_fast.score_argmax):
        with pytest.raises(ValueError, match=re.escape(message)):
            op(*sides, backend)
