"""Embed texts in several processes, each with a copy of the encoder on a device of its own."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from torch import Tensor, nn

from colbert_fast.models.embedding import embed, inference
from colbert_fast.models.tokens import Encoding, Tokenized
from colbert_fast.packed import PackedTokens

# Each process gets so many tasks, the longest texts first, so that all of them end at about the same time.
_TASKS = 16

# In a worker: what it was started with.
_given: dict[str, Any] = {}


def embed_in_processes(
    encoder: MultiVectorEncoder,
    tokenized: Tokenized,
    encoding: Encoding,
    *,
    texts: Tensor,
    devices: Sequence[torch.device],
    pad_row: bool,
    batch_size: int | None,
    done: Callable[[int], object],
) -> PackedTokens:
    """Embed texts, at least one, as `embed` does, in one process for each device. The result is on the CPU.

    The processes are started anew, by "spawn", and end with this call, or with the process that made it. Those on the
    CPU share the threads that torch has here.

    Raises
    ------
    RuntimeError
        One of the processes was ended from outside.
    """
    context: Any = torch.multiprocessing.get_context("spawn")
    on_cpu = sum(device.type == "cpu" for device in devices)
    given = {
        "encoder": _on_cpu(encoder),
        "tokenized": tokenized,
        "encoding": encoding,
        "options": {"pad_row": pad_row, "batch_size": batch_size},
        "threads": max(1, torch.get_num_threads() // max(1, on_cpu)),
    }
    # As bytes: torch would put the tensors, the caller's own weights among them, into shared memory.
    sent = pickle.dumps(given)
    free = context.SimpleQueue()
    for device in devices:
        free.put(str(device))
    order = tokenized.lengths[texts].argsort(descending=True, stable=True)
    tasks = order.tensor_split(min(len(order), _TASKS * len(devices)))
    parts: list[PackedTokens | None] = [None] * len(tasks)
    executor = ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(sent, free))
    try:
        futures = {executor.submit(_work, texts[task].tolist()): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            number = futures[future]
            parts[number] = _packed(*future.result())
            done(len(tasks[number]))
    except BrokenProcessPool as error:
        msg = "a process that embedded texts was ended, perhaps because the memory was full"
        raise RuntimeError(msg) from error
    finally:
        # After an error or Ctrl-C nobody waits for texts that are being embedded. Python has a method for this from
        # version 3.14 on.
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)
    found: PackedTokens = PackedTokens.cat([part for part in parts if part is not None])[order.argsort()]
    return found


def _on_cpu(encoder: MultiVectorEncoder) -> nn.Module:
    return encoder if encoder.device.type == "cpu" else copy.deepcopy(encoder).to("cpu")


def _begin(sent: bytes, free: Any) -> None:
    """Start a worker: it takes one of the devices."""
    # Ctrl-C reaches the caller's process too, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    given = pickle.loads(sent)
    torch.set_num_threads(given["threads"])
    _given.update(given, encoder=given["encoder"].to(free.get()))


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _work(numbers: list[int]) -> tuple[Any, torch.dtype, int, list[int]]:
    """Embed the texts with these numbers. The rows are returned as bytes, which NumPy can send in every dtype."""
    encoder, options = _given["encoder"], _given["options"]
    with inference(encoder):
        found = embed(encoder, _given["tokenized"], _given["encoding"], texts=torch.tensor(numbers), **options)
    rows = torch.cat(list(found)).cpu().contiguous()
    return rows.view(torch.uint8).numpy(), rows.dtype, rows.shape[1], found.lengths.tolist()


def _packed(rows: Any, dtype: torch.dtype, dim: int, lengths: list[int]) -> PackedTokens:
    counts = torch.tensor(lengths, dtype=torch.int64)
    tokens = torch.from_numpy(rows).view(dtype).view(-1, dim)
    return PackedTokens(tokens, counts.cumsum(0) - counts, counts)
