"""Embed a whole collection: the order of the rows, the order of the batches, modes, options and memory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sentence_transformers.base.modules import Module
from tiny import DOCUMENTS, QUERIES, close

import colbert_fast as cf
from colbert_fast.models import ColBERT, embedding

# No two are equal.
TEXTS = ["paris " * (n * 7 % 13) + ("", "berlin", "the", "of")[n // 13] for n in range(40)]


@pytest.fixture
def encoder(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def lengths_of_passes(encoder: ColBERT) -> list[tuple[int, int]]:
    """Return a list to which each pass through the encoder from now on adds its shape."""
    shapes: list[tuple[int, int]] = []
    encoder.encoder.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0]["input_ids"].shape)))
    return shapes


class TestOrder:
    def test_item_follows_item_in_the_order_of_the_texts(self, encoder: ColBERT) -> None:
        packed = encoder.encode_documents(TEXTS)
        assert torch.equal(packed.starts, packed.lengths.cumsum(0) - packed.lengths)
        assert packed.rows == int(packed.lengths.sum())
        for text, rows in zip(TEXTS, packed, strict=True):
            close(rows, encoder.encode_documents([text])[0])

    def test_the_longest_texts_come_first(self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedding, "_CPU_BATCH_TOKENS", 60)
        shapes = lengths_of_passes(encoder)
        encoder.encode_documents(TEXTS)
        widths = [width for _, width in shapes]
        assert len(widths) > 5
        assert widths == sorted(widths, reverse=True)

    def test_rows_that_a_module_leaves_out_leave_no_gap(
        self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A module that the package does not know, such as token pooling, may keep fewer rows than there are tokens."""

        class EverySecond(Module):
            config_keys: ClassVar[list[str]] = []

            def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
                features["attention_mask"][:, 1::2] = False
                return features

            def save(self, *args: Any, **kwargs: Any) -> None:
                raise NotImplementedError

        whole = encoder.encode_documents(TEXTS)
        encoder.encoder.append(EverySecond())
        monkeypatch.setattr(embedding, "_MOVED_ROWS", 7)
        packed = encoder.encode_documents(TEXTS)
        for rows, every in zip(packed, whole, strict=True):
            real = every[every.any(1)]
            close(rows[rows.any(1)], real[::2])
        assert torch.equal(packed.starts, packed.lengths.cumsum(0) - packed.lengths)
        encoder.train()
        assert encoder.scores(TEXTS[:3], TEXTS[:3], tqdm_bar=False).requires_grad


class TestModes:
    @pytest.mark.parametrize("name", ["encode_queries", "encode_documents"])
    def test_no_dropout_in_training_mode(self, encoder: ColBERT, name: str) -> None:
        expected = getattr(encoder, name)(DOCUMENTS).tokens
        encoder.train()
        encoder.linear.eval()  # type: ignore[union-attr]
        modes = [module.training for module in encoder.modules()]
        embedded = getattr(encoder, name)(DOCUMENTS).tokens
        assert torch.equal(embedded, expected)
        assert not embedded.requires_grad
        assert [module.training for module in encoder.modules()] == modes
        assert not torch.allclose(encoder(DOCUMENTS)["embeddings"], encoder(DOCUMENTS)["embeddings"])

    def test_encode_has_none_either(self, encoder: ColBERT) -> None:
        expected = encoder.encode(DOCUMENTS)["embeddings"]
        encoder.train()
        assert torch.equal(encoder.encode(DOCUMENTS)["embeddings"], expected)

    def test_modes_return_after_an_error(self, encoder: ColBERT) -> None:
        encoder.train()

        def fail(module: object, args: object) -> None:
            raise KeyboardInterrupt

        handle = encoder.encoder.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            encoder.encode_documents(DOCUMENTS)
        handle.remove()
        assert all(module.training for module in encoder.modules())

    def test_threads_do_not_wake_each_other(self, encoder: ColBERT) -> None:
        expected = encoder.encode_documents(TEXTS).tokens
        encoder.train()
        with ThreadPoolExecutor(6) as executor:
            for tokens in executor.map(lambda _: encoder.encode_documents(TEXTS).tokens, range(60)):
                close(tokens, expected)
        assert all(module.training for module in encoder.modules())


class TestKnobs:
    def test_batch_size_is_the_most_texts_of_a_pass(self, encoder: ColBERT) -> None:
        expected = encoder.encode_documents(TEXTS)
        shapes = lengths_of_passes(encoder)
        close(encoder.encode_documents(TEXTS, batch_size=3).tokens, expected.tokens)
        assert max(n for n, _ in shapes) == 3
        with pytest.raises(ValueError, match="batch_size must be 1 or more; got 0"):
            encoder.encode_documents(TEXTS, batch_size=0)

    @pytest.mark.parametrize("name", ["tqdm_bar", "show_progress_bar"])
    def test_progress_bar(self, encoder: ColBERT, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        encoder.encode_documents(TEXTS)
        assert not capsys.readouterr().err
        encoder.encode_documents(TEXTS, **{name: True})
        err = capsys.readouterr().err
        assert "Encoding documents" in err
        assert "40/40" in err

    def test_device(self, encoder: ColBERT) -> None:
        assert encoder.encode_queries(TEXTS, device="cpu").device.type == "cpu"
        with pytest.raises(RuntimeError, match="device must be one that torch can use here; got 'nonsense'"):
            encoder.encode_queries(TEXTS, device="nonsense")
        with pytest.raises(ValueError, match="device must have memory"):
            encoder.encode_queries(TEXTS, device="meta")

    def test_length_normalized_scores(self, encoder: ColBERT) -> None:
        expected = encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False)
        counts = encoder.encode_queries(QUERIES).lengths
        close(encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=False, length_normalize=True), expected / counts)
        same = encoder.scores(QUERIES[:1], QUERIES[:1], tqdm_bar=False, length_normalize=True)
        assert 0 < float(same) <= 1 + 1e-6


class TestWindows:
    @pytest.mark.parametrize("held", [1, 700, 3000, 2**28])
    @pytest.mark.parametrize("swap", [False, True])
    def test_every_pair_has_its_score(
        self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch, held: int, swap: bool
    ) -> None:
        from colbert_fast.models import colbert

        draw = torch.Generator().manual_seed(0)
        few, many = TEXTS[:7], [f"berlin {text}" for text in TEXTS]
        pairs = [
            (few[int(torch.randint(7, (1,), generator=draw))], many[int(torch.randint(40, (1,), generator=draw))])
            for _ in range(120)
        ]
        queries, documents = (list(side) for side in zip(*(pair[:: -1 if swap else 1] for pair in pairs), strict=True))
        q = encoder.encode_queries(queries)
        d = encoder.encode_documents(documents)
        monkeypatch.setattr(colbert, "_HELD_BYTES", held)
        close(encoder.scores(queries, documents, tqdm_bar=False), cf.maxsim_pairwise(q, d))

    def test_a_text_passes_once_for_each_block_of_the_smaller_side(
        self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from colbert_fast.models import colbert

        # The embeddings of all queries fit, and all documents' do not. Still every text passes only once.
        monkeypatch.setattr(colbert, "_HELD_BYTES", 5000)
        queries, documents = ["berlin", "paris"], [f"{text} a" for text in TEXTS if text][:20]
        shapes = lengths_of_passes(encoder)
        encoder.scores(queries * 20, [text for text in documents for _ in queries], tqdm_bar=False)
        assert len(shapes) > 6
        # A query has six tokens, and every document has more.
        assert sum(n for n, width in shapes if width > 6) == len(set(documents))


MEMORY = """
import gc, sys, threading, time
import torch
from colbert_fast.models import ColBERT
import warnings

warnings.simplefilter("ignore")
torch.set_num_threads(1)
encoder = ColBERT(sys.argv[1], embedding_size=int(sys.argv[3]), device="cpu", max_length_document=64)
texts = ["a b c d e f g h " * 7 + str(n) for n in range(int(sys.argv[4]))]

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

encoder.encode_documents(texts[:64])
gc.collect()
before = peak = rss()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, rss())
        time.sleep(0.002)

watching = threading.Thread(target=watch)
watching.start()
if sys.argv[2] == "scores":
    result = encoder.scores(["a b c"], texts, tqdm_bar=False)
    size = len(texts) * 60 * int(sys.argv[3]) * 4
elif sys.argv[2] == "encode":
    result = encoder.encode(texts, query_mode=False)["embeddings"]
    size = result.nbytes
else:
    result = encoder.encode_documents(texts).tokens
    size = result.untyped_storage().nbytes()
running = False
watching.join()
gc.collect()
print((peak - before) / size, (rss() - before) / size, size / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process its memory")
@pytest.mark.parametrize(("name", "peak", "after"), [("encode_documents", 1.3, 1.15), ("encode", 1.3, 1.15)])
def test_memory_is_that_of_the_result(plain: Path, name: str, peak: float, after: float) -> None:
    taken, kept, _ = measured(plain, name, 1024, 1500)
    assert taken < peak
    assert kept < after


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process its memory")
def test_scores_hold_a_part_of_the_embeddings(plain: Path) -> None:
    taken, _, size = measured(plain, "scores", 2048, 2000)
    assert size > 900
    assert taken * size < 1.3 * 256


def measured(folder: Path, name: str, size: int, count: int) -> list[float]:
    command = [sys.executable, "-c", MEMORY, str(folder), name, str(size), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]
