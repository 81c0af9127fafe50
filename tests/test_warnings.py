"""The warning of a document without a token names the line that asked for the score, by every way to ask for it."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import colbert_fast as cf

Q, D = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
D[1] = 0
LEAF = Q.clone().requires_grad_()
MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
LIST = [D[0], D[0, :0]]
PACKED = cf.PackedTokens.from_list(LIST)
PAIRS = torch.tensor([[0, 1]])
OF_QUERIES = cf.maxsim  # a name of the user's own
PARTIAL = functools.partial(cf.maxsim, Q)
SIDES = (Q.flatten(0, 1), torch.tensor([0, 3]), torch.tensor([3, 3]), PACKED.tokens, None, PACKED.starts)
OP_ARGUMENTS = (*SIDES, PACKED.lengths, None, 3, 5, False, False, 2**20, None)


class Module(torch.nn.Module):
    def forward(self, d: torch.Tensor) -> torch.Tensor:
        return cf.maxsim(Q, d)


def with_warnings(call: Callable[[], Any]) -> list[tuple[str, int]]:
    """Where the warnings of a call point."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.filename, w.lineno) for w in caught if "without a token" in str(w.message)]


def in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def in_a_pool(call: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


# Each call is on one line, the line of the user.
CALLS: dict[str, Callable[[], Any]] = {
    "maxsim": lambda: cf.maxsim(Q, D),
    "maxsim, gradient": lambda: cf.maxsim(LEAF, D),
    "maxsim, mask": lambda: cf.maxsim(Q, D, b_mask=MASK),
    "maxsim, list": lambda: cf.maxsim(Q, LIST),
    "maxsim, list, gradient": lambda: cf.maxsim(LEAF, LIST),
    "maxsim, packed": lambda: cf.maxsim(Q, PACKED),
    "maxsim, int8": lambda: cf.maxsim(Q, PACKED.quantize()),
    "maxsim, torch": lambda: cf.maxsim(Q, D, backend="torch"),
    "maxsim_pairwise": lambda: cf.maxsim_pairwise(Q, D),
    "maxsim_pairwise, gradient": lambda: cf.maxsim_pairwise(LEAF, LIST),
    "maxsim_pairs": lambda: cf.maxsim_pairs(Q, D, PAIRS),
    "maxsim_pairs, gradient": lambda: cf.maxsim_pairs(LEAF, D, PAIRS),
    "topk": lambda: cf.topk(Q, D, 1),
    "topk, candidates": lambda: cf.topk(Q, D, 1, candidates=[[1], [0]]),
    "another name": lambda: OF_QUERIES(Q, D),
    "partial": lambda: PARTIAL(D),
    "map": lambda: list(map(PARTIAL, [D])),
    "thread": lambda: in_a_thread(lambda: cf.maxsim(Q, D)),
    "pool": lambda: in_a_pool(lambda: cf.maxsim(Q, D)),
    "op": lambda: torch.ops.colbert_fast.score(*OP_ARGUMENTS),
    "op with argmax": lambda: torch.ops.colbert_fast.score_argmax(*OP_ARGUMENTS),
    "checkpoint": lambda: checkpoint(cf.maxsim, LEAF, D, use_reentrant=False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_warning_names_the_line_of_the_user(call: Callable[[], Any]) -> None:
    assert with_warnings(call) == [(__file__, call.__code__.co_firstlineno)]


def test_inside_a_module_it_is_the_line_of_forward() -> None:
    assert with_warnings(lambda: Module()(D)) == [(__file__, Module.forward.__code__.co_firstlineno + 1)]


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("q", [Q, LEAF], ids=["scores", "gradient"])
# torch itself makes an instance of an autograd.Function while it traces it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_code_is_not_the_user(q: torch.Tensor, fullgraph: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(cf.maxsim, fullgraph=fullgraph, backend="aot_eager")
    call = lambda: compiled(q, D)  # noqa: E731
    compiled(Q, D.abs() + 1)
    assert with_warnings(call) == [(__file__, call.__code__.co_firstlineno)]


ODD_PATH = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
import colbert_fast as cf
assert cf.__file__.startswith(sys.argv[1]), cf.__file__
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cf.maxsim(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
print([(w.filename, w.lineno) for w in caught])
"""


def test_the_package_may_be_found_by_any_path() -> None:
    parent = Path(cf.__file__).parents[1]
    odd = f"{parent.parent}/./{parent.name}"
    done = subprocess.run([sys.executable, "-c", ODD_PATH, odd], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[('<string>', 9)]"
