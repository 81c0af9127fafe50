"""Time a step of training with a package that has neural-cherche's `models` and `train`.

    python benchmarks/training.py PACKAGE CHECKPOINT

PACKAGE is `colbert_fast` or `neural_cherche`; each needs an environment of its own. CHECKPOINT is a folder that
neural-cherche or `ColBERT.save_pretrained` has written. A step is 8 triples on one thread: queries of 4 to 12 words,
documents of 20 to 120 words. Prints the loss of the last step, which both packages share, the shortest CPU time and
wall time of a step, and the largest memory of the process. It needs Linux.
"""

from __future__ import annotations

import importlib
import json
import random
import resource
import sys
import time

import torch

WORDS = ["the", "of", "paris", "berlin", "capital", "france", "wing", "flow", "shock", "boundary", "layer", "river"]
TRIPLES, STEPS, WARM_UP = 8, 6, 1


def text(shortest: int, longest: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(random.randint(shortest, longest)))


def main(package: str, checkpoint: str) -> None:
    models, train = (importlib.import_module(f"{package}.{name}") for name in ("models", "train"))
    random.seed(0)
    torch.set_num_threads(1)
    triples = [(text(4, 12), text(20, 120), text(20, 120)) for _ in range(TRIPLES)]
    anchor, positive, negative = (list(side) for side in zip(*triples, strict=True))
    model = models.ColBERT(checkpoint, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-6)
    times = []
    for _ in range(STEPS):
        cpu, wall = time.process_time(), time.perf_counter()
        found = train.train_colbert(
            model=model,
            optimizer=optimizer,
            anchor=anchor,
            positive=positive,
            negative=negative,
            in_batch_negatives=True,
        )
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_times, wall_times = zip(*times[WARM_UP:], strict=True)
    print(
        json.dumps(
            {
                "package": package,
                "loss": round(found["loss"].item(), 5),
                "cpu_seconds": round(min(cpu_times), 2),
                "wall_seconds": round(min(wall_times), 2),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
