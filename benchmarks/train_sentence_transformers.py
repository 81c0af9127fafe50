"""A few training steps of sentence-transformers' own trainer, with its scoring functions and with ours.

    python -m benchmarks.train_sentence_transformers [--batch 16] [--steps 4] [--turns 2] [--loss NAME]

It needs ``accelerate`` and ``datasets`` beside the extra ``demo``. The model is all-MiniLM-L6-v2 with a projection that
is random but always the same. Both functions train turn by turn in one process, from the same weights and on the same
batches. A row says how far the two loss curves lie apart, the CPU seconds of a step, and the CPU milliseconds and the
peak memory of scoring alone (forward and backward) on the embeddings of the first step.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.bench_encoding import MODEL, write_pairs

Score = Callable[..., Tensor]


class Watched:
    """A scoring function that keeps the arguments of its first call."""

    def __init__(self, function: Score) -> None:
        self.function = function
        self.__name__: str = function.__name__
        self.first: tuple[Any, ...] | None = None

    def __call__(self, queries: Tensor, documents: Tensor, **masks: Tensor) -> Tensor:
        if self.first is None:
            self.first = (queries.detach().clone(), documents.detach().clone(), masks)
        return self.function(queries, documents, **masks)

    def alone(self) -> tuple[float, int]:
        """Score the first batch again, with gradients. Returns the seconds, and the bytes that this needs."""
        assert self.first is not None
        queries, documents, masks = self.first
        sides = queries.requires_grad_(), documents.requires_grad_()
        seconds = []
        for _ in range(5):
            memory._forget_peak()
            before, start = memory._peak(), time.process_time()
            self.function(*sides, **masks).sum().backward()
            seconds.append(time.process_time() - start)
            peak = memory._peak() - before
            queries.grad = documents.grad = None
        return min(seconds), peak


def losses() -> dict[str, tuple[Callable[..., Any], str]]:
    """Return every loss, and the name of its scoring function."""
    from sentence_transformers.multi_vector_encoder import losses as found

    return {
        "MultipleNegativesRanking": (found.MultiVectorMultipleNegativesRankingLoss, "colbert_scores"),
        "CachedMultipleNegativesRanking": (found.CachedMultiVectorMultipleNegativesRankingLoss, "colbert_scores"),
        "DistillKLDiv": (found.MultiVectorDistillKLDivLoss, "colbert_kd_scores"),
        "MarginMSE": (found.MultiVectorMarginMSELoss, "colbert_scores_pairwise"),
    }


def dataset(rows: int, labels: bool) -> Any:
    from datasets import Dataset

    queries, positives = write_pairs(rows)
    columns: dict[str, Any] = {"query": queries, "positive": positives, "negative": write_pairs(rows, seed=1)[1]}
    if labels:
        teacher = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0))
        columns["label"] = (8 + 4 * teacher).tolist()
    return Dataset.from_dict(columns)


def train(model: Any, loss: Callable[..., Any], score: Watched, data: Any, batch: int) -> tuple[list[float], float]:
    """Train one epoch. Returns the loss of every step, and the seconds of a step."""
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    model = copy.deepcopy(model)
    options = {"mini_batch_size": max(1, batch // 2)} if loss.__name__.startswith("Cached") else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = MultiVectorEncoderTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            learning_rate=3e-5,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        measure = loss(model, similarity_fct=score, **options)
        curve: list[float] = []  # the trainer's own log rounds the loss
        measure.register_forward_hook(lambda _module, _inputs, value: curve.append(value.item()))
        trainer = MultiVectorEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=measure)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    return curve, seconds / len(curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("batch", 16), ("steps", 4), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--loss", default="", help="only losses whose name contains this")
    given = parser.parse_args()

    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder import scoring

    from colbert_fast.integrations import sentence_transformers as ours

    torch.manual_seed(0)
    spec = find_spec(MODEL)
    assert spec is not None and spec.submodule_search_locations, f"{MODEL} is not installed"
    model = MultiVectorEncoder(str(Path(spec.submodule_search_locations[0]) / "model"), device="cpu")
    print(
        "largest difference of the loss curves, CPU seconds of a step, CPU ms of scoring, MB of scoring: theirs / ours"
    )
    chosen = {name: parts for name, parts in losses().items() if given.loss in name}
    for name, (loss, function) in chosen.items():
        data = dataset(given.batch * given.steps, labels="Ranking" not in name)
        found: dict[str, list[Any]] = {"theirs": [], "ours": []}
        for turn in range(given.turns):
            for side in ("theirs", "ours")[:: -1 if turn % 2 else 1]:
                score = Watched(getattr(scoring if side == "theirs" else ours, function))
                curve, step = train(model, loss, score, data, given.batch)
                found[side].append((curve, step, *score.alone()))
        curves = zip(found["theirs"][0][0], found["ours"][0][0], strict=True)
        apart = max(abs(a - b) / abs(a) for a, b in curves)
        columns = [[median(run[i] for run in found[side]) for side in ("theirs", "ours")] for i in (1, 2, 3)]
        steps, alone, peak = columns
        print(
            f"{name}: {apart:.1e}; {steps[0]:.2f} / {steps[1]:.2f}; {1e3 * alone[0]:.1f} / {1e3 * alone[1]:.1f};"
            f" {peak[0] / 1e6:.1f} / {peak[1] / 1e6:.1f}; ours {[round(x, 4) for x in found['ours'][0][0]]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
