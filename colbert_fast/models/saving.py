"""Saving an encoder as a checkpoint, and which files of a folder belong to a checkpoint."""

from __future__ import annotations

import copy
import fnmatch
import io
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import nn

from colbert_fast.models import folders, staging, tokens
from colbert_fast.models.checkpoint import projection
from colbert_fast.models.folder_contents import Replaced
from colbert_fast.models.load_report import quiet_loading
from colbert_fast.models.settings import check_settings

FORMATS = ("neural-cherche", "sentence-transformers")

# Names of the files that some library reads when it loads a checkpoint, of whatever kind. Where one of them was not
# written anew it must go: older weights, another tokenizer or another list of modules would be read instead of the new
# files or beside them. Every other name is the user's: README.md, the state of a training, folders of other
# checkpoints, a repository of git, scripts.
_CHECKPOINT_FILES = (
    # Weights, whole, in shards and in variants such as model.fp16.safetensors; adapters, which name a base model.
    *("model.safetensors", "model.*.safetensors", "model-*-of-*.safetensors", "model.safetensors.index*.json"),
    *("pytorch_model.bin", "pytorch_model.*.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index*.json"),
    *("tf_model*.h5", "tf_model.h5.index.json", "flax_model*.msgpack", "flax_model.msgpack.index.json"),
    *("model.ckpt.*", "rust_model.ot", "model*.onnx", "model*.onnx_data", "openvino_model*.xml", "openvino_model*.bin"),
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "ort_config.json"),
    *("consolidated*.safetensors", "consolidated*.pth"),
    # Projections: neural-cherche's, BGE-M3's; the settings of Stanford's ColBERT.
    *("linear.pt", "colbert_linear.pt", "sparse_linear.pt", "artifact.metadata"),
    # Configurations: transformers', sentence-transformers'.
    *("config.json", "generation_config.json", "quantize_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*config.json", "router_config.json"),
    # Tokenizers and processors.
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "entity_vocab.json", "tekken.json"),
    *("spiece.model", "sentencepiece*.model", "spm*.model", "tokenizer.model", "prophetnet.tokenizer"),
    *("chat_template.json", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
# Folders, besides the modules, in which sentence-transformers looks for weights.
_EXPORTS = ("onnx", "openvino")
_ALWAYS_SAVED_BY_SENTENCE_TRANSFORMERS = {"truncation": True, "add_special_tokens": True}


def save(
    encoder: MultiVectorEncoder,
    path: str | os.PathLike[str],
    format: str,
    settings: dict[str, Any],
    metadata: dict[str, Any],
) -> None:
    """Write a checkpoint folder in one of `FORMATS`, leaving the encoder as it is; see `ColBERT.save_pretrained`.

    Raises
    ------
    TypeError, ValueError
        Unknown format, settings that no encoder can have, or an encoder that the format cannot express.
    FileExistsError
        `path` is a file, holds a checkpoint whose files would be read instead of those written, or cannot be replaced.
    OSError
        What the system says, such as a full disk. The folder is then as it was.
    """
    if format not in FORMATS:
        msg = f"format must be one of {list(FORMATS)}; got {format!r}"
        raise ValueError(msg)
    check_settings(settings)
    _check_projection(encoder)
    if reason := _beyond(encoder, format, settings):
        others = [other for other in FORMATS if other != format and not _beyond(encoder, other, settings)]
        instead = f"; pass format={others[0]!r}".replace("'", '"') if others else ""
        msg = f'format "{format}" cannot express {reason}{instead}'
        raise ValueError(msg)
    staging.recover(path)
    if format == "sentence-transformers" and os.path.lexists(Path(path) / "linear.pt"):
        msg = (
            f"path must not hold a neural-cherche checkpoint, whose linear.pt would win; got {os.fspath(path)!r}: "
            "save to another folder, or remove that checkpoint first"
        )
        raise FileExistsError(msg)

    def write(folder: str) -> None:
        saved = _snapshot(encoder)
        with quiet_loading():  # transformers shows a bar as it saves, too
            if format == "neural-cherche":
                _write_neural_cherche(saved, Path(folder), settings, metadata)
            else:
                _write_sentence_transformers(saved, folder, settings)

    try:
        folders.replace(path, write, checkpoint_files)
    except Exception as error:
        # safetensors and tokenizers have errors of their own for a full disk.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None or isinstance(error, OSError):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), os.fspath(path)) from error


def checkpoint_files(folder: str, written: frozenset[str]) -> Replaced:
    """Return what says whether a path in a folder is a checkpoint's file, or a module's folder, rather than the user's.

    Parameters
    ----------
    folder
        The folder, whose modules.json names the folders of its modules.
    written
        The paths of a new checkpoint's files, relative to the folder; their folders are modules too.
    """
    modules = _module_folders(folder)
    modules |= {posixpath.dirname(path) for path in written}
    modules |= {*_EXPORTS, "additional_chat_templates"}
    # A common name: neural-cherche's file has this key.
    own_metadata = "max_length_query" in _read_object(os.path.join(folder, "metadata.json"), dict)

    def belongs(path: str) -> bool:
        inside, name = posixpath.split(path)
        if path in modules or (path == "metadata.json" and own_metadata):
            return True
        if inside == "additional_chat_templates":
            return name.endswith(".jinja")
        # The modules of a Router have their folders in its own.
        in_module = not inside or any(inside == module or inside.startswith(f"{module}/") for module in modules)
        return in_module and any(fnmatch.fnmatchcase(name, pattern) for pattern in _CHECKPOINT_FILES)

    return belongs


def _module_folders(folder: str) -> set[str]:
    """Folders that modules.json names. One that would leave the folder does not count."""
    paths = set()
    for module in _read_object(os.path.join(folder, "modules.json"), list):
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path and not os.path.isabs(path):
            inner = posixpath.normpath(path)
            if inner != "." and inner.split("/")[0] != "..":
                paths.add(inner)
    return paths


def _read_object(path: str, kind: type) -> Any:
    """Content of a JSON file; empty where the file is not there or holds something else."""
    try:
        content = json.loads(Path(path).read_bytes()) if os.path.isfile(path) else None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, kind) else kind()


def _snapshot(encoder: MultiVectorEncoder) -> MultiVectorEncoder:
    """A copy that shares the weights and can be changed: transformers writes to the configuration as it saves."""
    saved: MultiVectorEncoder = _shallow(encoder)
    name, first = next(iter(saved._modules.items()))
    if isinstance(first, Transformer):
        transformer: Any = _shallow(first)
        model: Any = getattr(transformer.model, "_orig_mod", transformer.model)  # of torch.compile
        if isinstance(model, nn.Module):
            model = _shallow(model)
            for part in ("config", "generation_config"):
                if part in vars(model):
                    setattr(model, part, copy.deepcopy(getattr(model, part)))
            transformer.model = model
        # What a fast tokenizer was told by the last call would go into its file, while another thread tells it more.
        with tokens.tokenizing:
            transformer.processor = copy.deepcopy(transformer.processor)
        backend = getattr(transformer.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        saved._modules[name] = transformer
    return saved


def _shallow(module: Any) -> Any:
    copied = copy.copy(module)
    copied.__dict__["_modules"] = copy.copy(module._modules)
    return copied


def _write_neural_cherche(
    encoder: MultiVectorEncoder, folder: Path, settings: dict[str, Any], metadata: dict[str, Any]
) -> None:
    metadata = {**metadata, **settings}
    transformer: Any = encoder[0]
    linear = projection(encoder)
    if linear is None:
        # The identity gives neural-cherche the raw states; the metadata tell this package to leave it out.
        state = {"weight": torch.eye(transformer.get_embedding_dimension(), dtype=torch.float32)}
        metadata["embedding_size"] = None
    else:
        # Copies, for torch writes all of the memory that a tensor is a part of.
        state = {name: value.detach().cpu().clone() for name, value in linear.state_dict().items()}
        metadata.pop("embedding_size", None)
    transformer.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    # Through memory, so that a full disk is an OSError.
    content = io.BytesIO()
    torch.save(state, content)
    (folder / "linear.pt").write_bytes(content.getbuffer())
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def _write_sentence_transformers(encoder: MultiVectorEncoder, folder: str, settings: dict[str, Any]) -> None:
    transformer: Any = encoder[0]
    if getattr(transformer, "query_expansion", None) is None:
        transformer.query_length = settings["max_length_query"]
    transformer.document_length = settings["max_length_document"]
    prompts = {"query": settings["query_prefix"], "document": settings["document_prefix"]}
    encoder.prompts = {**encoder.prompts, **prompts}
    # A model card looks the base model up on the hub.
    encoder.save_pretrained(folder, create_model_card=False)


def _check_projection(encoder: MultiVectorEncoder) -> None:
    """Raise ValueError unless the projection fits the transformer, as a load requires."""
    linear, transformer = projection(encoder), encoder[0]
    hidden = cast(Any, transformer).get_embedding_dimension()
    if linear is not None and (linear.weight.dim() != 2 or linear.weight.shape[1] != hidden):
        msg = f"linear must fit the transformer, weight [*, {hidden}]; got {list(linear.weight.shape)}"
        raise ValueError(msg)


def _beyond(encoder: MultiVectorEncoder, format: str, settings: dict[str, Any]) -> str | None:
    """What of the encoder the format cannot express, or None."""
    if format == "neural-cherche":
        return _beyond_neural_cherche(encoder)
    for name, value in _ALWAYS_SAVED_BY_SENTENCE_TRANSFORMERS.items():
        if settings[name] is not value:
            return f"{name}={settings[name]!r}"
    return None


def _beyond_neural_cherche(encoder: MultiVectorEncoder) -> str | None:
    if getattr(encoder[0], "query_expansion", None) is not None:
        return "query expansion"
    if getattr(encoder[0], "backend", "torch") != "torch":
        return f"a transformer of the backend {encoder[0].backend!r}"
    for module in encoder:
        if isinstance(module, Dense):
            identity = isinstance(module.activation_function, nn.Identity)
            if module.use_residual or not identity or module.linear is not projection(encoder):
                return "a projection other than one linear layer"
        elif isinstance(module, MultiVectorMask):
            if module.skiplist_words or module.keep_only_token_ids:
                return "a skiplist"
        elif not isinstance(module, (Transformer, Normalize)):
            return f"a {type(module).__name__} module"
    if not any(isinstance(module, Normalize) for module in encoder):
        return "embeddings that are not normalised"
    return None
