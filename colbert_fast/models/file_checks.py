"""Checks of single files of a checkpoint, before anything is loaded from them. Each error names the file.

A damaged file must not count as a missing file: the encoder would then silently be a different one.
"""

from __future__ import annotations

import errno
import json
import ntpath
import os
import posixpath
import re
import stat
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

# The files that transformers and sentence-transformers read as a JSON object, in the folder of a checkpoint or module.
_OBJECTS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "metadata.json"),
    *("preprocessor_config.json", "processor_config.json", "adapter_config.json", "artifact.metadata"),
    *(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert")),
    *("sentence_xlm-roberta_config.json", "sentence_xlnet_config.json", "config_sentence_transformers.json"),
)
# The other files that they read. The content of these files is checked where it is read.
_OTHERS = (
    *("linear.pt", "colbert_linear.pt", "modules.json", "chat_template.jinja"),
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "spm.model", "adapter_model.safetensors"),
)
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
# The weights are read from the first of these files that exists.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# Git LFS stores a large file elsewhere and leaves a text in its place. The text begins with these bytes.
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_JSON_BYTES = 2**26
# The names that transformers uses for the number of layers of an encoder, and of a decoder. A decoder may be absent.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
# Each layer is built in Python before its weights are read. A million layers would take an hour.
_MAX_LAYERS = 10_000


def check_folder(folder: str, *, weights_needed: bool) -> None:
    """Raise ValueError if the folder has a damaged file that a load would read.

    Raises FileNotFoundError if the weights are needed and the folder has no weights.
    """
    for name in _OTHERS:
        check_regular(os.path.join(folder, name))
    for name in _OBJECTS:
        path = os.path.join(folder, name)
        if check_regular(path):
            read_json(path)
    config = os.path.join(folder, "config.json")
    content = read_json(config) if os.path.exists(config) else {}
    check_layers(config, content)
    is_quantised = "quantization_config" in content
    for name in _WEIGHTS:
        path = os.path.join(folder, name)
        if check_regular(path):
            _check_weights(path, is_quantised)
            return
    if weights_needed:
        msg = f"{folder} must hold the weights of a model, such as model.safetensors; there are none"
        raise FileNotFoundError(msg)


def check_layers(path: str, content: dict[str, Any]) -> None:
    """Raise ValueError if a model has no layers, or too many to be built. `content` is what the file `path` holds."""
    left = [content]
    while left:
        part = left.pop()
        left += [value for value in part.values() if isinstance(value, dict)]
        for name in _LAYERS + _DECODER_LAYERS:
            # A part of a model may have no layers, such as a vision part that no text passes through.
            least = 1 if part is content and name in _LAYERS else 0
            value = part.get(name)
            if isinstance(value, int) and not least <= value <= _MAX_LAYERS:
                msg = f'{path} must have from {least} to {_MAX_LAYERS} layers as "{name}"; got {value}'
                raise ValueError(msg)


def check_regular(path: str) -> bool:
    """Return whether the file exists.

    Raises ValueError if something else stands in its place, if the file is empty, or if it is a pointer of Git LFS.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            msg = f"{path} must be a file; it is a link to {os.readlink(path)!r}, which is not there"
            raise ValueError(msg) from None
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            msg = f"{path} must be a file; it is a link that leads back to itself"
            raise ValueError(msg) from error
        raise
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe" if stat.S_ISFIFO(status.st_mode) else "device"
        msg = f"{path} must be a file; it is a {kind}"
        raise ValueError(msg)
    if status.st_size == 0:
        msg = f"{path} is empty"
        raise ValueError(msg)
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            msg = f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull` in its repository"
            raise ValueError(msg)
    return True


def check_subfolder(source: str, path: str) -> None:
    """Raise ValueError if a path leads out of the checkpoint. `source` is the file that names the path."""
    absolute = posixpath.isabs(path) or ntpath.isabs(path) or ntpath.splitdrive(path)[0]
    if absolute or "\0" in path or ".." in re.split(r"[/\\]", path):
        msg = f"{source} must name paths inside the checkpoint; got {path!r}"
        raise ValueError(msg)


def read_json(path: str, kind: type = dict) -> Any:
    """Return the content of a JSON file: an object, or an array where `kind` is list. Anything else is a ValueError.

    If metadata.json has the same name twice, it is refused, because nobody knows which of the two values was meant.
    """
    hook = _once if os.path.basename(path) == "metadata.json" else None
    if (size := os.path.getsize(path)) > _MAX_JSON_BYTES:
        msg = f"{path} must have at most {_MAX_JSON_BYTES} bytes; it has {size}"
        raise ValueError(msg)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, kind):
        msg = f"{path} must hold a JSON {'array' if kind is list else 'object'}; got {type(content).__name__}"
        raise ValueError(msg)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object. Raise ValueError if a name comes more than once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in counts.items() if count > 1)
        msg = f"an object names {twice} more than once"
        raise ValueError(msg)
    return content


def read_tensors(path: str, **options: Any) -> Any:
    """Return what torch.save wrote, on the CPU. Anything else is a ValueError. Code in the file is never run."""
    try:
        # torch 2.5 and older run code in such a file in spite of weights_only: CVE-2025-32434.
        if tarfile.is_tarfile(path):
            msg = "it is a tar archive"
            raise tarfile.ReadError(msg)
        return torch.load(path, **{"map_location": "cpu", "weights_only": True, **options})
    except MemoryError:
        raise
    except Exception as error:
        # Only the first line of torch's message: the others advise weights_only=False, which runs code in the file.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
        msg = f"{path} is not a whole file of tensors, as torch.save writes it: {reason}"
        raise ValueError(msg) from error


def name_damage(folder: str, failure: Exception) -> None:
    """After the load of a folder has failed: raise an error if a damaged or missing file of the tokenizer is the cause.

    These files are not checked before a load: the JSON is too large to be read twice at each load, and some tokenizers
    need no file at all.
    """
    holds_words = any(os.path.exists(os.path.join(folder, name)) for name in _VOCABULARIES)
    if "processing class" in str(failure) and os.path.exists(os.path.join(folder, "config.json")) and not holds_words:
        msg = f"{folder} must hold the vocabulary of its tokenizer, one of the files {list(_VOCABULARIES)}; it has none"
        raise FileNotFoundError(msg) from failure
    for name in ("tokenizer.json", "vocab.json"):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            try:
                json.loads(Path(path).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                msg = f"{path} is not JSON: {error}"
                raise ValueError(msg) from error


def _check_weights(path: str, is_quantised: bool) -> None:
    """Raise ValueError for a damaged file of weights, or for weights that are no floating-point numbers."""
    if path.endswith(".index.json"):
        _check_shards(path, is_quantised)
        return
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                # "F32" and "BF16" are floating-point. "I64", "U8", "BOOL" and "C64" are not.
                dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            msg = f"{path} is not a whole safetensors file: {error}"
            raise ValueError(msg) from error
        odd = {name for name, dtype in dtypes.items() if not dtype.startswith(("F", "BF"))}
    else:
        # With map_location="meta" and mmap the numbers themselves are not read. torch's older format allows no mmap.
        tensors = read_tensors(path, map_location="meta", mmap=zipfile.is_zipfile(path))
        if not isinstance(tensors, dict):
            msg = f"{path} must hold tensors by name; got {type(tensors).__name__}"
            raise ValueError(msg)
        held = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        odd = {name for name, value in held.items() if not value.is_floating_point()}
    # Other tensors, such as position_ids, may hold integers.
    if not is_quantised and (wrong := sorted(name for name in odd if name.endswith((".weight", ".bias")))):
        msg = f"{path} must hold weights that are floating-point numbers; {wrong[0]} has another dtype"
        raise ValueError(msg)


def _check_shards(path: str, is_quantised: bool) -> None:
    """Check every file of weights that the index `path` names."""
    parts = read_json(path).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        msg = f'{path} must hold "weight_map", an object that names the file of each weight; got {parts!r:.200}'
        raise ValueError(msg)
    for part in sorted(set(parts.values())):
        check_subfolder(path, part)
        shard = os.path.join(os.path.dirname(path), part)
        if not check_regular(shard):
            msg = f"{path} names {part}, which is not there"
            raise FileNotFoundError(msg)
        _check_weights(shard, is_quantised)
