"""Ctrl-C and other signals are handled in the middle of a call, and the next call works."""

from __future__ import annotations

import os
import signal

import pytest
from processes import assert_clean, python


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to itself")
def test_ctrl_c_during_a_call(extension: str) -> None:
    script = r"""
def interrupt():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
score()
threading.Thread(target=interrupt).start()
long = torch.randn(64, 32, 64), torch.randn(300, 60, 64)
while True:
    score(*long)
"""
    done = python(script, extension)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_scores_after_ctrl_c(extension: str) -> None:
    script = r"""
expected = score()
for _ in range(3):
    try:
        threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()
        while True:
            score()
    except KeyboardInterrupt:
        pass
    assert torch.equal(score(), expected)
"""
    assert_clean(python(script, extension))


# A signal is sent once the extension has been called. The work grows until the signal is handled before the work is
# done. The handler knows that by its frame: it is the frame of the Python function that called the extension.
DURING = r"""
import torch

empty, zeros = torch.empty, torch.zeros
torch.empty = lambda *shape, **options: empty(*shape, **options).fill_(-77)
torch.zeros = lambda *shape, **options: zeros(*shape, **options).fill_(0)
few = score()
kind, raises = sys.argv[2], sys.argv[3] == "raises"
unfinished = []

def handler(number, frame):
    # The interrupted call and the call of the handler do not disturb each other.
    assert torch.equal(score(), few)
    while frame is not None and frame.f_code not in (cpu._score.__code__, cpu._backward.__code__):
        frame = frame.f_back
    if frame is None:
        return  # too late
    local = frame.f_locals
    written = local["grad"] if kind == "gradients" else local["scores"]
    unfinished.append(bool((written == (0 if kind == "gradients" else -77)).any()))
    if raises and unfinished[-1]:
        raise KeyboardInterrupt

signal.signal(signal.SIGUSR1, handler)

def work(size):
    if kind == "one document":
        a, b = torch.randn(1, 1000, 64), torch.randn(1, 50_000 * size, 64)
        return lambda: cf.maxsim(a, b, backend=backend)
    a, b = torch.randn(200, 32, 64), torch.randn(500 * size, 30, 64)
    if kind == "pairs":
        pairs = torch.stack([torch.arange(200_000 * size) % n for n in (200, 500 * size)], dim=1)
        return lambda: cf.maxsim_pairs(a, b, pairs, backend=backend)
    if kind == "gradients":
        scored = cf.maxsim(a.requires_grad_(), b.requires_grad_(), backend=backend)
        weights = torch.ones(scored.shape)
        return lambda: torch.autograd.grad(scored, [a, b], weights, retain_graph=True)[1]
    return lambda: cf.maxsim(a, b, backend=backend)

size = 1
while not any(unfinished):
    assert size <= 512, "no signal is handled in the middle of a call"
    call = work(size)
    size *= 2
    expected = None if raises else call()
    before = cpu._C.calls()
    def send():
        while cpu._C.calls() == before:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGUSR1)
    sender = threading.Thread(target=send)
    sender.start()
    interrupted = False
    try:
        result = call()
    except KeyboardInterrupt:
        interrupted = True
    sender.join()
    assert interrupted == (raises and any(unfinished))
    assert raises or torch.equal(result, expected)
assert torch.equal(score(), few)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
@pytest.mark.parametrize("outcome", ["raises", "goes on"])
@pytest.mark.parametrize("kind", ["all pairs", "one document", "pairs", "gradients"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_signal_is_handled_during_a_call(extension: str, kind: str, outcome: str, threads: str) -> None:
    assert_clean(python(DURING, extension, kind, outcome, environment={"COLBERT_FAST_NUM_THREADS": threads}))
