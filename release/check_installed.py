"""Checks an installed colbert_fast in seconds: what each wheel must do before it is published.

    python check_installed.py                  every tier of this processor scores as float64 does
    python check_installed.py --without-torch  where torch has no wheel: the extension loads, and its tiers run

It needs nothing but the package, and is run from a folder without the sources.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
from importlib.machinery import PathFinder
from typing import Any

# A tier that every machine of its kind has, those that build wheels at least.
EXPECTED = {"x86_64": "avx2", "amd64": "avx2", "aarch64": "neon", "arm64": "neon"}


def main() -> None:
    """Check, and print what was checked; raises AssertionError at the first fault."""
    parser = argparse.ArgumentParser(description="check an installed colbert_fast")
    parser.add_argument("--without-torch", action="store_true", help="load the extension alone")
    expected = EXPECTED[platform.machine().lower()]
    tiers = loaded_alone() if parser.parse_args().without_torch else scored()
    assert expected in tiers, f"the tier {expected} must run on {platform.machine()}; these do: {', '.join(tiers)}"
    print(f"Python {platform.python_version()}, {platform.platform()}: {', '.join(tiers)}")


def loaded_alone() -> list[str]:
    """Load the extension without its package, which imports torch, and return the tiers that run here."""
    package = importlib.util.find_spec("colbert_fast")
    assert package is not None and package.submodule_search_locations, "colbert_fast is not installed"
    spec = PathFinder.find_spec("_C", list(package.submodule_search_locations))
    assert spec is not None and spec.loader is not None, "the extension is not in the package"
    extension: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return [name for name, reason in extension.tiers() if reason is None]


def scored() -> list[str]:
    """Score with every backend of this processor in every dtype, and return the tiers that ran."""
    import torch

    import colbert_fast as cf
    from colbert_fast import reference

    names = [backend.name for backend in cf.backends() if backend.unsupported is None]
    tiers = [name.partition(":")[2] for name in names if name.startswith("cpu:")]
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        queries = torch.randn(3, 33, 128, generator=generator).to(dtype)
        documents = [torch.randn(n, 128, generator=generator).to(dtype) for n in (4, 7, 180, 65)]
        # The last token of the last document is the best one of a query.
        documents[-1][-1] = queries[0, 5]
        packed = cf.PackedTokens.from_list(documents)
        expected = reference.maxsim(list(queries), documents)
        argmax = reference.maxsim_pair(queries[0], documents[-1])[1]
        for name in names:
            scores = cf.maxsim(queries, packed, backend=name).double()
            error = ((scores - expected).abs() / expected.abs()).max().item()
            assert error < 1e-5, f"{name} is wrong by {error} in {dtype}"
            found = cf.maxsim_with_argmax(queries[:1], packed, backend=name)[1][0, -1]
            assert found[:33].tolist() == argmax.tolist(), f"{name} finds other tokens in {dtype}"
            best = cf.topk(queries, packed, 2, backend=name)[1]
            assert torch.equal(best, expected.topk(2).indices), f"{name} finds other documents in {dtype}"
    q = torch.randn(2, 9, 64, generator=generator, requires_grad=True)
    d = torch.randn(3, 20, 64, generator=generator)
    wanted = torch.autograd.grad(torch.einsum("aid,bjd->abij", q, d).amax(3).sum(), q)[0]
    for name in names:
        got = torch.autograd.grad(cf.maxsim(q, d, backend=name).sum(), q)[0]
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5), f"{name} has other gradients"
    return tiers


if __name__ == "__main__":
    main()
