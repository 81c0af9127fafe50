"""Texts that are embedded in several processes, and texts that come more than once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DOCUMENTS, close

from colbert_fast import PackedTokens
from colbert_fast.models import ColBERT

TEXTS = [*DOCUMENTS, *(f"{'the capital of ' * (n % 5)}france is paris {n}" for n in range(30)), DOCUMENTS[2], ""]


def assert_same(found: PackedTokens, expected: PackedTokens) -> None:
    assert found.lengths.tolist() == expected.lengths.tolist()
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.filterwarnings("default:.*were cut to.*:UserWarning")
def test_two_processes(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu").train()
    with pytest.warns(UserWarning, match=f"of {len(TEXTS)} documents were cut to 20 tokens") as told:
        found = encoder.encode_documents(TEXTS, devices=["cpu", torch.device("cpu")], batch_size=7)
    # torch would share them with the processes, and then with forked children too.
    assert not any(parameter.is_shared() for parameter in encoder.parameters())
    assert len([warning for warning in told if "were cut" in str(warning.message)]) == 1
    assert_same(found, encoder.encode_documents(TEXTS))
    assert encoder.training and encoder.encoder.training


def test_no_texts_and_wrong_devices(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"devices must be a list of one device or more; got 'cpu'"):
        encoder.encode_documents(TEXTS, devices="cpu")
    for wrong in ([], 5, [None], {"cpu"}):
        with pytest.raises(
            ValueError, match=r"devices must be a list of one device or more; got " + re.escape(f"{wrong}")
        ):
            encoder.encode_documents(TEXTS, devices=wrong)
    with pytest.raises(ValueError, match=r"give device or devices, not both; got 'cpu' and \['cpu'\]"):
        encoder.encode_documents(TEXTS, device="cpu", devices=["cpu"])
    with pytest.raises(RuntimeError, match="device must be one that torch can use here; got 'cpv'"):
        encoder.encode_documents(TEXTS, devices=["cpv"])
    none = encoder.encode_documents([], devices=["cpu"])
    assert len(none) == 0 and none.dtype == torch.bfloat16 and none.dim == encoder.embedding_size


def test_equal_texts_pass_once(neural_cherche: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")
    expected = [encoder.encode_documents([text])[0] for text in TEXTS]
    passed = []
    forward = type(encoder.encoder).forward

    def counted(self: Any, features: dict[str, Any], **kwargs: Any) -> Any:
        passed.append(len(features["input_ids"]))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(type(encoder.encoder), "forward", counted)
    found = encoder.encode_documents(TEXTS * 3)
    assert sum(passed) == len(set(TEXTS))
    assert len(found) == 3 * len(TEXTS)
    for one, other in zip(found, expected * 3, strict=True):
        close(one, other)


# The processes take a second for each task. The caller gets a signal, the second argument, when the first is done.
INTERRUPTED = """
import os, signal, sys, time
from colbert_fast.models import ColBERT, workers

def slow(*arguments, work=workers._work):
    time.sleep(1)
    return work(*arguments)

def interrupted(*arguments):
    print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workers._work, workers._packed = slow, interrupted
    texts = [f"text {n}" for n in range(1000)]
    ColBERT(sys.argv[1], device="cpu").encode_documents(texts, devices=["cpu"])
"""


def alive(process: str) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


# What a process does when it imports the script, and the error that the caller must get, by which nothing may wait.
DEATHS = {
    "encode()": """devices=... starts .* put the call under `if __name__ == "__main__":`$""",
    "raise ImportError('it is broken')": "ended too early, with exit code 1; what it printed may say why",
    "os._exit(3)": "ended too early, with exit code 3;",
    "os.kill(os.getpid(), 9)": "was ended by signal 9, perhaps because the memory was full$",
}
DYING = """
import os, sys, tempfile, torch

def encode():
    from colbert_fast.models import ColBERT
    encoder = ColBERT(sys.argv[1], device="cpu")
    encoder.encoder.register_buffer("more_than_a_pipe_holds", torch.zeros(2**20))
    encoder.encode_documents(["a text", "another"], devices=["cpu", "cpu"])

if __name__ == "__main__":
    for death in sys.argv[2:]:
        os.environ["DEATH"] = death
        try:
            encode()
        except RuntimeError as error:
            print(error, flush=True)
    print(os.listdir(tempfile.gettempdir()))
else:
    exec(os.environ["DEATH"])
"""


@pytest.mark.skipif(os.name == "nt", reason="processes are ended by signals")
def test_a_process_that_dies_at_its_start(neural_cherche: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "temporary"
    script.write_text(DYING, encoding="utf-8")
    folder.mkdir()
    command = [sys.executable, script, neural_cherche, *DEATHS]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    *errors, left = done.stdout.splitlines()
    assert len(errors) == len(DEATHS), done.stderr
    for error, expected in zip(errors, DEATHS.values(), strict=True):
        assert re.search(expected, error), error
    assert "it is broken" in done.stderr and "bootstrapping" not in done.stderr and "check_guard" not in done.stderr
    assert "colbert_fast" not in left


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are listed in /proc")
@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_the_processes_end_with_the_call(signal: str, neural_cherche: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED, encoding="utf-8")
    command = [sys.executable, script, neural_cherche, signal]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ("KeyboardInterrupt" in done.stderr) == (signal == "SIGINT") and done.returncode
    workers = done.stdout.split()
    assert workers, done.stderr
    for _ in range(600):
        if not any(map(alive, workers)):
            return
        time.sleep(0.1)
    raise AssertionError(workers)
