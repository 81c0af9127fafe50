"""Embed texts in several processes, each with a copy of the encoder on a device of its own."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from torch import Tensor, nn

from colbert_fast.models.embedding import embed, inference
from colbert_fast.models.tokens import Encoding, Tokenized
from colbert_fast.packed import PackedTokens

# Each process gets so many tasks, the longest texts first, so that all of them end at about the same time.
_TASKS = 16
# The name of the processes, by which they know themselves, and the exit code of one whose script would start processes.
_NAME = "colbert_fast encoder"
_UNGUARDED = 78
_GUARD = 'devices=... starts processes, which import this script anew: put the call under `if __name__ == "__main__":`'

# In a worker: what it was started with.
_given: dict[str, Any] = {}


class _Spawn(SpawnContext):
    """New processes whose name says that :func:`embed_in_processes` started them."""

    # Where SpawnContext has a class, this is a function.
    @staticmethod
    def Process(**kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        return SpawnProcess(name=_NAME, **kwargs)


def check_guard() -> None:
    """Refuse to start processes while a new process imports the main script: each would start processes of its own.

    Raises
    ------
    RuntimeError
        The caller must be put under ``if __name__ == "__main__":``.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        if process.name == _NAME:
            # In silence: the caller that started it raises the error.
            raise SystemExit(_UNGUARDED)
        raise RuntimeError(_GUARD)


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
        One of the processes ended too early: it was killed, or it could not import the script of the caller.
    """
    context: Any = _Spawn()
    on_cpu = sum(device.type == "cpu" for device in devices)
    given = {
        "encoder": _on_cpu(encoder),
        "tokenized": tokenized,
        "encoding": encoding,
        "options": {"pad_row": pad_row, "batch_size": batch_size},
        "threads": max(1, torch.get_num_threads() // max(1, on_cpu)),
    }
    free = context.SimpleQueue()
    for device in devices:
        free.put(str(device))
    order = tokenized.lengths[texts].argsort(descending=True, stable=True)
    tasks = order.tensor_split(min(len(order), _TASKS * len(devices)))
    parts: list[PackedTokens | None] = [None] * len(tasks)
    folder = tempfile.mkdtemp(prefix="colbert_fast-")
    processes: list[Any] = []
    try:
        # What a process is started with goes through a pipe, and a process that dies before it has read the pipe would
        # leave the caller waiting. So it gets the name of a file. By pickle, because torch would put the tensors, the
        # caller's own weights among them, into shared memory.
        path = Path(folder, "encoder")
        with path.open("wb") as file:
            pickle.dump(given, file)
        executor = ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(path, free))
        try:
            futures = {executor.submit(_work, texts[task].tolist()): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                number = futures[future]
                parts[number] = _packed(*future.result())
                done(len(tasks[number]))
        finally:
            # After an error or Ctrl-C nobody waits for texts that are being embedded. Python has a method for this from
            # version 3.14 on.
            processes = list((executor._processes or {}).values())
            for process in processes:
                process.terminate()
            executor.shutdown(wait=True, cancel_futures=True)
    except BrokenProcessPool as error:
        codes = [process.exitcode for process in processes]
        if _UNGUARDED in codes:
            raise RuntimeError(_GUARD) from None
        raise RuntimeError(_why(codes)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found: PackedTokens = PackedTokens.cat([part for part in parts if part is not None])[order.argsort()]
    return found


def _why(codes: list[int]) -> str:
    """Say how a process ended. The others were then ended by SIGTERM."""
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if code < 0:
        return f"a process that embedded texts was ended by signal {-code}, perhaps because the memory was full"
    return f"a process that embedded texts ended too early, with exit code {code}; what it printed may say why"


def _on_cpu(encoder: MultiVectorEncoder) -> nn.Module:
    return encoder if encoder.device.type == "cpu" else copy.deepcopy(encoder).to("cpu")


def _begin(path: Path, free: Any) -> None:
    """Start a worker: it takes one of the devices."""
    # Ctrl-C reaches the caller's process too, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_caller, args=(path.parent,), daemon=True).start()
    with path.open("rb") as file:
        given = pickle.load(file)
    torch.set_num_threads(given["threads"])
    _given.update(given, encoder=given["encoder"].to(free.get()))


def _end_with_the_caller(folder: Path) -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    shutil.rmtree(folder, ignore_errors=True)
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
