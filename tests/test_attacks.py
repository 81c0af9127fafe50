"""Another thread writes to a batch or shrinks it in a call: the call raises or scores, and reads nothing outside."""

from __future__ import annotations

import pytest
from processes import assert_clean, python

# What another thread does to a batch again and again while it is scored.
ATTACKS = {
    "writes starts": "P.starts[5] = 10**12; P.starts[5] = 0",
    "writes lengths": "P.lengths[5] = 10**12; P.lengths[5] = 1",
    "writes pairs": "pairs[7, 1] = 10**12; pairs[7, 1] = 0",
    "writes scales": "I.scales[3] = float('nan'); I.scales[3] = 1",
    "shrinks starts": "P.starts.resize_(3); P.starts.resize_(100)",
    "shrinks the storage of lengths": "s = P.lengths.untyped_storage(); s.resize_(8); s.resize_(800)",
    "strides lengths": "P.lengths.as_strided_((100,), (0,)); P.lengths.as_strided_((100,), (1,))",
    "shrinks an item": "L[5].resize_(1, 64); L[5].resize_(60, 64)",
    "shrinks the storage of an item": "s = L[5].untyped_storage(); s.resize_(0); s.resize_(60 * 64 * 4)",
    "grows an item": "L[5].resize_(600, 64); L[5].untyped_storage().resize_(60 * 64 * 4); L[5].resize_(60, 64)",
    "sets an item": "L[5].set_(torch.zeros(1, 64)); L[5].set_(torch.zeros(60, 64))",
    "replaces an item's data": "L[5].data = torch.zeros(1, 64); L[5].data = torch.zeros(60, 64)",
    "shrinks the list": "L.append(L.pop()); del L[99:]; L.append(torch.zeros(60, 64))",
}
ATTACKED = r"""
import warnings

# A batch that was shrunk may have documents without tokens.
warnings.simplefilter("ignore")
expected = score()
L = [torch.randn(60, 64) for _ in range(100)]
P = cf.PackedTokens.from_list(L)
I = P.quantize("int8")
pairs = torch.stack([torch.randint(16, (500,)), torch.randint(100, (500,))], dim=1)
stop = threading.Event()
def attack():
    while not stop.is_set():
        @ATTACK@
attacker = threading.Thread(target=attack)
attacker.start()
calls = (
    lambda: score(b=P), lambda: score(b=L), lambda: score(b=I), lambda: cf.topk(queries, L, 3, backend=backend),
    lambda: cf.maxsim_pairs(queries, P, pairs, backend=backend), lambda: torch.ops.colbert_fast.score(
        queries.flatten(0, 1), torch.arange(0, 512, 32), torch.full((16,), 32), P.tokens, None, P.starts, P.lengths,
        pairs, 32, 60, False, False, 2**24, backend),
)
refused = 0
for _ in range(30):
    for call in calls:
        try:
            call()
        except (ValueError, RuntimeError, TypeError):
            refused += 1
stop.set()
attacker.join()
assert torch.equal(score(), expected)
"""


@pytest.mark.parametrize("attack", ATTACKS)
def test_another_thread_cannot_send_a_kernel_astray(extension: str, attack: str) -> None:
    assert_clean(python(ATTACKED.replace("@ATTACK@", ATTACKS[attack]), extension))
