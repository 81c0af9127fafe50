"""Every error is raised before a kernel runs, and says what is required, what was received, and which argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import colbert_fast as cf

Q, D = torch.ones(2, 3, 4), torch.ones(5, 6, 4)
PACKED = cf.PackedTokens.from_padded(D)

MAXSIM = [
    ((Q, torch.ones(5, 6, 7)), {}, ValueError, "a and b need the same dim; got a [*, 4] and b [*, 7]"),
    (
        (Q, D.to(torch.float8_e5m2)),
        {},
        TypeError,
        "a and b must be float32, bfloat16, float16 or float64, or of one dtype; got a torch.float32 and b torch.",
    ),
    (
        (torch.ones(3), D),
        {},
        ValueError,
        "a must be a list of [length, dim], or [n, length, dim], or one [length, dim]",
    ),
    ((Q, torch.ones(1, 2, 3, 4)), {}, ValueError, "got shape [1, 2, 3, 4]"),
    (("Berlin", D), {}, TypeError, "a must be a tensor, a numpy array or a list; got str. Texts become emb"),
    ((None, D), {}, TypeError, "got NoneType"),
    ((Q, {"b": D}), {}, TypeError, "b must be a tensor, a numpy array or a list; got dict"),
    ((["Berlin"], D), {}, TypeError, "a[0] must be a tensor"),
    (([torch.ones(3)], D), {}, ValueError, "a[0] must be [length, dim]; got shape [3]"),
    (
        ([Q[0], torch.ones(2, 5)], D),
        {},
        ValueError,
        "all items need the same dim; got a[1] [*, 5] beside [*, 4]",
    ),
    (([Q[0], Q[0].half()], D), {}, TypeError, "all items need the same dtype; got a[1] torch.float16"),
    (([[[1.0, 2.0], [3.0]]], D), {}, TypeError, "a[0] must be numbers in a rectangular array"),
    (([Q[0], torch.ones(2, 4, device="meta")], D), {}, ValueError, "got a[1] on meta beside cpu"),
    ((Q, [D[0], D[1], D]), {}, ValueError, "b[2] must be [length, dim]; got shape [5, 6, 4]"),
    ((Q, [D[0], torch.ones(2, 5)]), {}, ValueError, "all items need the same dim; got b[1] [*, 5]"),
    ((Q, [D[0], D[0].half()]), {}, TypeError, "all items need the same dtype; got b[1] torch.float16"),
    ((Q, (D[0], "Berlin")), {}, TypeError, "b[1] must be a tensor, a numpy array or a list; got str"),
    ((Q, [D[0], D[0].to(torch.complex64)]), {}, TypeError, "b[1] must be real numbers; got torch.complex64"),
    ((Q, [D[0].to_sparse()]), {}, TypeError, "b[0] must be a dense tensor; got layout torch.sparse_coo"),
    ((Q, [D[0], torch.ones(2)], None, torch.ones(2, 6)), {}, ValueError, "b[1] must be [length, dim]; got shape [2]"),
    ((Q, [D[0].requires_grad_(), torch.ones(3)]), {}, ValueError, "b[1] must be [length, dim]; got shape [3]"),
    ((Q.to(torch.complex64), D), {}, TypeError, "a must be real numbers; got torch.complex64"),
    ((Q.to_sparse(), D), {}, TypeError, "a must be a dense tensor; got layout torch.sparse_coo"),
    ((np.array(["x"]), D), {}, TypeError, "a must be numbers in a rectangular array"),
    (
        (Q, D, torch.ones(2, 4)),
        {},
        ValueError,
        "a_mask must be [2, 3], one entry per token; a_mask covers 4 tokens, with shape [2, 4]",
    ),
    (
        (Q, D, None, torch.ones(4, 6)),
        {},
        ValueError,
        "b_mask must be [5, 6], one entry per token; b_mask covers 6 tokens, with shape [4, 6]",
    ),
    ((Q, D, None, torch.ones(5, 6, 1)), {}, ValueError, "b_mask must be [5, 6]"),
    ((Q, D, None, "no"), {}, TypeError, "b_mask must be a tensor"),
    ((Q, D, None, [torch.ones(1, 6)] * 5), {}, ValueError, "b_mask as a list must hold one 1-D mask per item"),
    (
        (Q, D, [torch.ones(3), torch.ones(1, 3)]),
        {},
        ValueError,
        "a_mask as a list must hold one 1-D mask per item; got a_mask[1] of shape [1, 3]",
    ),
    ((Q, D, None, [torch.ones(6)] * 4 + ["no"]), {}, TypeError, "b_mask[4] must be a tensor"),
    ((Q, PACKED, None, torch.ones(5, 6)), {}, ValueError, "b_mask cannot go with a PackedTokens"),
    ((Q, D), {"chunk_elements": 0}, ValueError, "chunk_elements must be 1 or more; got 0"),
    ((Q, D), {"chunk_elements": 1.5}, TypeError, "chunk_elements must be an int; got 1.5"),
    ((Q, D), {"backend": "fast"}, ValueError, "no backend is called 'fast'; there are cpu, "),
]


def matching(message: str) -> str:
    return re.escape(message)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), MAXSIM)
def test_maxsim(arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=matching(message)):
        cf.maxsim(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: cf.maxsim_pairwise(Q, D),
            ValueError,
            "a and b must hold the same number of items to be scored in pairs; got 2 and 5",
        ),
        (
            lambda: cf.maxsim_pairs(Q, D, [0, 1]),
            ValueError,
            "pairs must be [p, 2], (query, document) numbers; got shape [2]",
        ),
        (lambda: cf.maxsim_pairs(Q, D, [[0, 1, 2]]), ValueError, "got shape [1, 3]"),
        (lambda: cf.maxsim_pairs(Q, D, [[0.0, 1.0]]), TypeError, "pairs must be integers; got torch.float32"),
        (
            lambda: cf.maxsim_pairs(Q, D, [[2, 0]]),
            ValueError,
            "pairs must number queries from 0 to 1; got the number 2",
        ),
        (
            lambda: cf.maxsim_pairs(Q, D, [[0, -1]]),
            ValueError,
            "pairs must number documents from 0 to 4; got the number -1",
        ),
        (
            lambda: cf.maxsim_pairs(Q, D, [[0, 5], [0, 9]]),
            ValueError,
            "pairs must number documents from 0 to 4; got numbers from 5 to 9",
        ),
        (
            lambda: cf.maxsim_pairs(Q, D[:0], [[0, 0]]),
            ValueError,
            "pairs must number documents but there are none; got the number 0",
        ),
        (lambda: cf.maxsim_pairs(Q, D, [[0, 1], [1]]), TypeError, "pairs must be numbers in a rectangular array"),
        (lambda: cf.maxsim_pairs(Q, D, None), TypeError, "pairs must be a tensor, a numpy array or a list; got None"),
        (lambda: cf.maxsim_pairs(Q, [D[0], D], [[0, 1]]), ValueError, "b[1] must be [length, dim]"),
        (lambda: cf.topk([Q[0], 3], D, 1), TypeError, "a[1] must be a tensor"),
        (lambda: cf.topk(Q, [D[0], torch.ones(3)], 1), ValueError, "b[1] must be [length, dim]"),
        (lambda: cf.maxsim_pairwise([Q[0], 3], D), TypeError, "a[1] must be a tensor"),
        (lambda: cf.PackedTokens.from_list([Q[0], torch.ones(3)]), ValueError, "items[1] must be [length, dim]; got"),
        (
            lambda: cf.PackedTokens.from_list([Q[0], torch.ones(2, 5)]),
            ValueError,
            "all items need the same dim; got items[1] [*, 5] beside [*, 4]",
        ),
        (lambda: cf.PackedTokens.from_padded(Q, [torch.ones(3), 1]), TypeError, "mask[1] must be a tensor"),
        (lambda: cf.topk(Q, D, 0), ValueError, "k must be 1 or more; got 0"),
        (lambda: cf.topk(Q, D, 2.0), TypeError, "k must be an int; got 2.0"),
        (
            lambda: cf.topk(Q, D, 2, candidates=[[0]]),
            ValueError,
            "candidates needs one row per query; got 1 rows for 2",
        ),
        (
            lambda: cf.topk(Q, D, 2, candidates=[[0], [5]]),
            ValueError,
            "candidates[1] must number documents from 0 to 4",
        ),
        (
            lambda: cf.topk(Q, D, 2, candidates=torch.tensor([[0, 1], [4, -1]])),
            ValueError,
            "candidates must number documents from 0 to 4; got numbers from -1 to 4",
        ),
        (
            lambda: cf.topk(Q, D, 2, candidates=[[0], [[1]]]),
            ValueError,
            "candidates[1] must be a row of document numbers",
        ),
        (lambda: cf.topk(Q, D, 2, candidates=3), TypeError, "candidates must be a matrix of integers, or a list of"),
        (lambda: cf.topk(Q, D, 2, candidates="ab"), TypeError, "candidates must be a matrix of integers, or a list of"),
        (lambda: cf.topk(Q, D, 2, candidates=torch.tensor(3)), ValueError, "or a list of rows; got a single number"),
        (lambda: cf.topk(Q, D, 2, candidates=[0, 1]), TypeError, "candidates[0] must be a tensor, a numpy array or a"),
        (lambda: cf.topk(Q, D, 2, candidates=[[0], [0.5]]), TypeError, "candidates[1] must be integers"),
        (lambda: cf.PackedTokens(np.ones((2, 3)), Q, Q), TypeError, "tokens must be a tensor; got ndarray"),
        (
            lambda: packed(torch.ones(3, dtype=torch.int64), [0], [1]),
            TypeError,
            "tokens must be floating point, or int8 with scales; got torch.int64",
        ),
        (lambda: packed(torch.ones(3), [0], [1]), ValueError, "tokens must be [total, dim]; got shape [3]"),
        (lambda: packed(torch.ones(3, 2), [0.0], [1]), TypeError, "starts must be integer; got torch.float32"),
        (lambda: packed(torch.ones(3, 2), [0], [1, 1]), ValueError, "got shapes [1] and [2]"),
        (
            lambda: packed(torch.ones(3, 2), [0, 2], [1, 2]),
            ValueError,
            "item 1 has start 2 and length 2; tokens has 3 rows",
        ),
        (lambda: packed(torch.ones(3, 2), [-1], [1]), ValueError, "item 0 has start -1"),
        (lambda: packed(torch.ones(3, 2), [0], [-1]), ValueError, "item 0 has start 0 and length -1"),
        (lambda: packed(torch.ones(3, 2), [2**62], [2**62]), ValueError, "tokens has 3 rows"),
        (
            lambda: cf.PackedTokens.from_padded(torch.ones(3, 2)),
            ValueError,
            "tokens must be [n, length, dim]; got shape [3, 2]",
        ),
        (
            lambda: cf.PackedTokens.from_nested(Q),
            TypeError,
            "nested must be a torch.nested tensor with layout=torch.jagged",
        ),
        (lambda: PACKED[5], IndexError, "index 5 is out of range for 5 items"),
        (lambda: PACKED.to(dtype=torch.int8), TypeError, "dtype must be floating point; got torch.int8"),
        (
            lambda: PACKED.with_tokens(torch.ones(29, 4)),
            ValueError,
            "tokens must be [30, dim] on cpu; got shape [29, 4]",
        ),
        (lambda: cf.set_num_threads(0), ValueError, "n must be 1 or more; got 0"),
        (lambda: cf.set_num_threads(2.0), TypeError, "n must be an int; got 2.0"),
    ],
)
def test_others(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=matching(message)):
        call()


def no_memory(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a tensor whose storage was made too small for it."""
    tensor = torch.ones(shape, dtype=dtype)
    tensor.untyped_storage().resize_(0)
    return tensor


def unaligned(n: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(8 * n + 1), dtype=torch.int64, offset=1, count=n)


def packed(tokens: torch.Tensor, starts: list[Any], lengths: list[Any]) -> cf.PackedTokens:
    return cf.PackedTokens(tokens, torch.tensor(starts), torch.tensor(lengths))


def one(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_lengths": one(4)}, "item 0 of q is the rows [0, +4) of 3"),
        ({"d_starts": one(-1)}, "item 0 of d is the rows [-1, +1) of 3"),
        ({"d_starts": one(2**62)}, "item 0 of d is the rows [4611686018427387904, +1) of 3"),
        ({"d_starts": one(0, 0)}, "d_starts and d_lengths must be equally long; got 2 and 1"),
        ({"d_starts": one(0, 1, 2)[::2]}, "d_starts must be contiguous"),
        ({"d_starts": one(0)[0]}, "d_starts must have 1 dimensions"),
        ({"d_tokens": torch.ones(4, 3).T}, "d_tokens must have adjacent elements in a row"),
        ({"d_tokens": torch.ones(3, 5)}, "q and d need the same dim; got 4 and 5"),
        ({"d_tokens": torch.ones(3)}, "d_tokens must have 2 dimensions"),
        ({"d_tokens": lambda: no_memory(3, 4)}, "d_tokens needs 12 elements of memory; its storage has 0"),
        (
            {"d_starts": lambda: no_memory(1, dtype=torch.int64)},
            "d_starts needs 1 elements of memory; its storage has 0",
        ),
        ({"d_lengths": unaligned(1)}, "d_lengths must be aligned to its element size"),
        ({"d_dtype": 4}, "dtype 4; 0 to 3 are known"),
        ({"d_dtype": 3}, "d needs scales if its rows are int8"),
        ({"d_scales": torch.ones(3)}, "d needs scales if its rows are int8, and only then"),
        ({"d_dtype": 3, "d_scales": torch.ones(2)}, "d_scales must be contiguous, one for each of the 3 rows; got 2"),
        (
            {"q_dtype": 2, "q_tokens": torch.ones(3, 4).half(), "d_dtype": 1, "d_tokens": torch.ones(3, 4).bfloat16()},
            "q and d need the same dtype, or q float32, or d int8",
        ),
        ({"q_dtype": 1, "q_tokens": torch.ones(3, 4).bfloat16()}, "q and d need the same dtype, or q float32"),
        ({"max_lq": 0}, "the longest of 1 queries has 1 tokens, of 3 in all; max_lq says 0"),
        ({"max_lq": 2**62}, "of 3 in all; max_lq says 4611686018427387904"),
        ({"pairs": torch.tensor([[0, 7]])}, "pairs[0] is (0, 7); there are 1 queries and 1 documents"),
        ({"pairs": torch.tensor([[0, 0], [0, 0]])}, "scores must have 2 elements; got 1"),
        ({"threads": 0}, "threads must be 1 or more; got 0"),
        (
            {"d_tokens": torch.ones(1, 4).expand(2**40, 4), "d_lengths": one(2**31)},
            "item 0 of d has 2147483648 tokens; 2147483647 is the most",
        ),
    ],
)
def test_the_extension_checks_its_bounds_itself(changes: dict[str, Any], message: str) -> None:
    """No caller can make a kernel leave its buffers, not even by calling the op with wrong offsets."""
    # Made in the test: torch crashes if a report of pytest prints a tensor without memory.
    given = {name: value() if callable(value) else value for name, value in changes.items()}
    parts = {"dtype": 0, "tokens": torch.ones(3, 4), "starts": one(0), "lengths": one(1), "scales": None}
    q, d = (tuple(given.get(f"{side}_{name}", value) for name, value in parts.items()) for side in "qd")
    rest = given.get("pairs"), given.get("max_lq", 1), False, False, given.get("threads", 1)
    scores = torch.zeros(1)
    with pytest.raises(ValueError, match=matching(message)):
        cf._backends.cpu._C.score("portable", q, d, *rest, scores, None)
    assert scores.item() == 0


def test_bad_offsets_through_the_op(native: str) -> None:
    tokens, zero = torch.ones(3, 4), torch.tensor([0])
    for starts, lengths in (([5], [1]), ([0], [9]), ([-2], [1])):
        sides = (tokens, zero, torch.tensor([3]), tokens, None, torch.tensor(starts), torch.tensor(lengths), None)
        with pytest.raises(ValueError, match="item 0 of d is the rows"):
            torch.ops.colbert_fast.score(*sides, 3, 3, False, False, 2**20, native)


@pytest.mark.parametrize(
    "order", [torch.tensor([0]), torch.zeros(2, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)]
)
def test_an_order_that_does_not_fit_through_the_op(backend: str, order: torch.Tensor) -> None:
    tokens, zero, three = torch.ones(3, 4), torch.tensor([0]), torch.tensor([3])
    sides = (tokens, zero, three, tokens, None, zero, three, None, 3, 3, False, False, 2**20, backend)
    for op in (torch.ops.colbert_fast.score, torch.ops.colbert_fast.score_argmax):
        with pytest.raises(
            ValueError, match=matching("d_order must be contiguous torch.int32 [1] on cpu; got torch.int")
        ):
            op(*sides, d_order=order)


@pytest.mark.parametrize(
    ("d_tokens", "error", "message"),
    [
        (torch.ones(3, 9), ValueError, "q_tokens and d_tokens need the same dim; got 4 and 9"),
        (torch.ones(3, 2), ValueError, "q_tokens and d_tokens need the same dim; got 4 and 2"),
        (torch.ones(3, 4).double(), TypeError, "or be int8; got q_tokens torch.float32 and d_tokens torch.float64"),
        (torch.ones(3, 4).to(torch.float8_e5m2), TypeError, "or be int8; got q_tokens torch.float32 and d_tokens torc"),
    ],
)
def test_sides_that_do_not_fit_through_the_op(
    backend: str, d_tokens: torch.Tensor, error: type[Exception], message: str
) -> None:
    zero, three = torch.tensor([0]), torch.tensor([3])
    sides = (torch.ones(3, 4), zero, three, d_tokens, None, zero, three, None)
    with pytest.raises(error, match=matching(message)):
        torch.ops.colbert_fast.score(*sides, 3, 3, False, False, 2**20, backend)
