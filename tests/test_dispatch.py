"""Which backend is chosen, and what is said when it cannot run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from lacking import LACKING

import colbert_fast as cf
from colbert_fast import _backends
from colbert_fast._backends import select, torch_, triton_
from colbert_fast._backends.problem import Backend

INPUTS = (torch.ones(1, 2, 3), torch.ones(1, 2, 3))


def runnable(prefix: str = "") -> list[Backend]:
    return [b for b in cf.backends() if b.unsupported is None and b.name.startswith(prefix)]


def test_every_backend_runs_or_says_why() -> None:
    names = [b.name for b in cf.backends()]
    x86_64 = ["amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2"]
    tiers = [*x86_64, "neon_i8mm", "neon_dotprod", "neon", "portable"]
    assert names == ["triton", *(f"cpu:{tier}" for tier in tiers), "torch"]
    for backend in cf.backends():
        assert backend.unsupported is None or len(backend.unsupported) > 10
    if "interpreter" in LACKING:
        reasons = ("triton is not installed; `pip install ", "needs Triton 3.5 or newer")
        assert str(cf.backends()[0].unsupported).startswith(reasons)
    elif not torch.cuda.is_available():
        assert cf.backends()[0].unsupported == "there is no CUDA device"
    assert {"cpu:portable", "torch"} <= {b.name for b in runnable()}


def test_best_first() -> None:
    assert select("cpu", torch.float32, None) is runnable("cpu:")[0]
    assert select("cpu", torch.float32, "cpu") is runnable("cpu:")[0]
    assert select("cpu", torch.float64, None).name == "torch"
    assert select("mps", torch.float32, None).name == "torch"
    on_cuda = "torch" if cf.backends()[0].unsupported else "triton"
    assert select("cuda", torch.bfloat16, None).name == on_cuda
    assert select("cuda", torch.float64, None).name == "torch"


def test_a_forced_tier_really_runs(native: str) -> None:
    tier = native.removeprefix("cpu:")
    before = cf._backends.cpu._C.calls()
    scores = cf.maxsim(*(x.clone().requires_grad_() for x in INPUTS), backend=native)
    scores.sum().backward()
    after = cf._backends.cpu._C.calls()
    assert after[tier] == before[tier] + 3  # score_argmax, and backward for either side
    assert {name: n for name, n in after.items() if name != tier} == {n: c for n, c in before.items() if n != tier}


def test_torch_does_not_use_the_extension() -> None:
    before = cf._backends.cpu._C.calls()
    cf.maxsim(*INPUTS, backend="torch")
    assert cf._backends.cpu._C.calls() == before


def test_environment_variable(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = native.removeprefix("cpu:")
    monkeypatch.setenv("COLBERT_FAST_BACKEND", native)
    before = cf._backends.cpu._C.calls()[tier]
    cf.maxsim(*INPUTS)
    assert cf._backends.cpu._C.calls()[tier] == before + 1
    cf.maxsim(*INPUTS, backend="torch")  # the argument wins
    assert cf._backends.cpu._C.calls()[tier] == before + 1


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_blank_environment_variable_means_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLBERT_FAST_BACKEND", text)
    assert select("cpu", torch.float32, None) is runnable("cpu:")[0]


@pytest.mark.parametrize("name", ["cuda", "cpu:", "cpu:avx", "CPU", "avx2"])
def test_unknown_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"no backend is called '{name}'; there are cpu, {', '.join(b.name for b in cf.backends())}"
    with pytest.raises(ValueError, match=message):
        cf.maxsim(*INPUTS, backend=name)
    monkeypatch.setenv("COLBERT_FAST_BACKEND", name)
    with pytest.raises(ValueError, match=message):
        cf.maxsim(*INPUTS)


def test_a_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(
        NotImplementedError,
        match=r"(?s)'triton' cannot score torch.float32 .*triton: (there|takes|triton is not|needs Triton)",
    ):
        cf.maxsim(*INPUTS, backend="triton")
    with pytest.raises(NotImplementedError, match=r"(?s)'cpu' cannot score.*cpu:portable: has no torch.float64 kernel"):
        cf.maxsim(*(x.double() for x in INPUTS), backend="cpu")
    with pytest.raises(NotImplementedError, match=r"cpu:portable: takes tensors on cpu only"):
        select("cuda", torch.float32, "cpu:portable")
    fp8 = [x.to(torch.float8_e4m3fn) for x in INPUTS]
    with pytest.raises(
        NotImplementedError, match=r"(?s)no backend can score.*torch: has no torch.float8_e4m3fn kernel"
    ):
        cf.maxsim(*fp8)


def test_a_refusal_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that the system refuses is skipped, or raises if it was named. The system may grant it later."""
    answers = ["the kernel said no", "the kernel said no again", None]
    best = runnable("cpu:")[0]
    asking = best._replace(name="cpu:asking", refused=lambda _: answers.pop(0))
    monkeypatch.setattr(_backends, "BACKENDS", (asking, *_backends.BACKENDS))
    monkeypatch.setattr(_backends, "_refusals", {})
    _backends._select.cache_clear()
    try:
        assert cf.backends()[0].unsupported is None
        assert len(answers) == 3  # no backend has asked yet
        assert select("cpu", torch.float32, None) is best
        assert select("cpu", torch.float32, None) is best  # and it has asked once
        assert cf.backends()[0].unsupported == "the kernel said no"
        with pytest.raises(NotImplementedError, match="cpu:asking: the kernel said no again"):
            select("cpu", torch.float32, "cpu:asking")
        assert select("cpu", torch.float32, "cpu:asking") is asking
        assert cf.backends()[0].unsupported is None
    finally:
        _backends._select.cache_clear()


@dataclass
class _Properties:
    name: str
    major: int
    minor: int


def test_a_gpu_that_is_too_old_scores_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GPU is new enough. Each GPU is asked once, and only a call that names the backend gets the reason."""
    gpus = [_Properties("NVIDIA A100", 8, 0), _Properties("Tesla T4", 7, 5)]
    asked = []

    def properties(device: torch.device) -> _Properties:
        asked.append(device.index)
        return gpus[device.index]

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(
        _backends, "BACKENDS", (triton_.BACKEND._replace(unsupported=None, device="cuda"), torch_.BACKEND)
    )
    monkeypatch.setattr(_backends, "_refusals", {})
    monkeypatch.setattr(triton_, "INTERPRETED", False)
    _backends._select.cache_clear()
    new, old = torch.device("cuda", 0), torch.device("cuda", 1)
    try:
        for _ in range(2):
            assert select(new, torch.float32, None).name == "triton"
            assert cf.backends()[0].unsupported is None
        for _ in range(2):
            assert select(old, torch.float32, None).name == "torch"
        assert asked == [0, 1]
        reason = "needs compute capability 8.0 or more; Tesla T4 has 7.5"
        assert cf.backends()[0].unsupported == reason
        with pytest.raises(NotImplementedError, match=f"(?s)'triton' cannot score .* on cuda:1.*triton: {reason}"):
            select(old, torch.float32, "triton")
        assert select(new, torch.float32, "triton").name == "triton"
        monkeypatch.setattr(torch.version, "hip", "6.0")  # the numbers of HIP mean something else
        assert select(old, torch.bfloat16, None).name == "triton"
    finally:
        _backends._select.cache_clear()


def test_the_extension_refuses_a_tier_it_has_not() -> None:
    with pytest.raises(ValueError, match=r"no CPU tier 'mmx'; there are amx, .*, neon, portable"):
        cf._backends.cpu._C.score("mmx", (), (), None, 0, False, False, 1, torch.zeros(1), None)


def test_a_backend_is_shown_in_one_line() -> None:
    backends = cf.backends()
    assert repr(backends[-1]) == "Backend('torch')"
    for backend in backends:
        assert (backend.unsupported or backend.name) in repr(backend)
        assert "function" not in repr(backend)
