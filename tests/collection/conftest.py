"""Fixtures of the tests of collections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    """The matrices here are small: torch's threads would wait for each other for longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
