"""Save an encoder as a checkpoint, and tell which files of a folder belong to a checkpoint."""

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
from colbert_fast.models.runtimes import torch_model
from colbert_fast.models.settings import check_settings

FORMATS = ("neural-cherche", "sentence-transformers")

# The names of all files that some library reads when it loads a checkpoint of any kind. If a save does not write such a
# file anew, the old file must be removed: otherwise a load would read old weights, another tokenizer or another list of
# modules together with the new files, or in their place. Every other file is the user's: README.md, the state of a
# training, folders of other checkpoints, a git repository, scripts.
_CHECKPOINT_FILES = (
    # Weights in one file, in shards, and in variants such as model.fp16.safetensors; adapters, which name a base model.
    *("model.safetensors", "model.*.safetensors", "model-*-of-*.safetensors", "model.safetensors.index*.json"),
    *("pytorch_model.bin", "pytorch_model.*.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index*.json"),
    *("tf_model*.h5", "tf_model.h5.index.json", "flax_model*.msgpack", "flax_model.msgpack.index.json"),
    *("model.ckpt.*", "rust_model.ot", "model*.onnx", "model*.onnx_data", "openvino_model*.xml", "openvino_model*.bin"),
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "ort_config.json"),
    *("consolidated*.safetensors", "consolidated*.pth"),
    # Projections of neural-cherche and of BGE-M3; the settings of a Stanford ColBERT.
    *("linear.pt", "colbert_linear.pt", "sparse_linear.pt", "artifact.metadata"),
    # Configurations of transformers and of sentence-transformers.
    *("config.json", "generation_config.json", "quantize_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*config.json", "router_config.json"),
    # Tokenizers and processors.
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "entity_vocab.json", "tekken.json"),
    *("spiece.model", "sentencepiece*.model", "spm*.model", "tokenizer.model", "prophetnet.tokenizer"),
    *("chat_template.json", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
# The folders in which sentence-transformers looks for weights, besides the folders of the modules.
_EXPORTS = ("onnx", "openvino")
_ALWAYS_SAVED_BY_SENTENCE_TRANSFORMERS = {"truncation": True, "add_special_tokens": True}


def save(
    encoder: MultiVectorEncoder,
    path: str | os.PathLike[str],
    format: str,
    settings: dict[str, Any],
    metadata: dict[str, Any],
) -> None:
    """Write a checkpoint folder in one of `FORMATS`. The encoder does not change. See `ColBERT.save_pretrained`.

    Raises
    ------
    TypeError, ValueError
        An unknown format, settings that no encoder can have, or an encoder that the format cannot express.
    FileExistsError
        `path` is a file; or it holds a neural-cherche checkpoint, which a load would read instead of the new files; or
        the folder holds a checkpoint and cannot be replaced in one step.
    OSError
        An error of the system, such as a full disk. The folder stays as it was.
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
            "path must not hold a neural-cherche checkpoint, because its linear.pt would win; "
            f"got {os.fspath(path)!r}: save to another folder, or remove that checkpoint first"
        )
        raise FileExistsError(msg)

    def write(folder: str) -> None:
        saved = _snapshot(encoder)
        with quiet_loading():  # transformers shows a progress bar when it saves, too
            if format == "neural-cherche":
                _write_neural_cherche(saved, Path(folder), settings, metadata)
            else:
                _write_sentence_transformers(saved, folder, settings)

    try:
        folders.replace(path, write, checkpoint_files)
    except Exception as error:
        # safetensors and tokenizers raise errors of their own for a full disk. Turn such an error into an OSError.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None or isinstance(error, OSError):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), os.fspath(path)) from error


def checkpoint_files(folder: str, written: frozenset[str]) -> Replaced:
    """Return a function that says whether a path in `folder` belongs to a checkpoint, and not to the user.

    A path belongs to a checkpoint if it is a file that a load reads or the folder of a module.

    Parameters
    ----------
    folder
        The folder. Its modules.json names the folders of its modules.
    written
        The paths of a new checkpoint's files, relative to the folder. The folders of these files are modules too.
    """
    modules = _module_folders(folder)
    modules |= {posixpath.dirname(path) for path in written}
    modules |= {*_EXPORTS, "additional_chat_templates"}
    # Other programs write a metadata.json, too. The file of a neural-cherche checkpoint has this key.
    own_metadata = "max_length_query" in _read_object(os.path.join(folder, "metadata.json"), dict)

    def belongs(path: str) -> bool:
        inside, name = posixpath.split(path)
        if path in modules or (path == "metadata.json" and own_metadata):
            return True
        if inside == "additional_chat_templates":
            return name.endswith(".jinja")
        # The folders of a Router's modules lie inside the folder of the Router.
        in_module = not inside or any(inside == module or inside.startswith(f"{module}/") for module in modules)
        return in_module and any(fnmatch.fnmatchcase(name, pattern) for pattern in _CHECKPOINT_FILES)

    return belongs


def _module_folders(folder: str) -> set[str]:
    """Return the paths of the folders that modules.json names. A path that leads out of `folder` is left out."""
    paths = set()
    for module in _read_object(os.path.join(folder, "modules.json"), list):
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path and not os.path.isabs(path):
            inner = posixpath.normpath(path)
            if inner != "." and inner.split("/")[0] != "..":
                paths.add(inner)
    return paths


def _read_object(path: str, kind: type) -> Any:
    """Return the content of a JSON file, or an empty `kind` if the file does not exist or holds something else."""
    try:
        content = json.loads(Path(path).read_bytes()) if os.path.isfile(path) else None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, kind) else kind()


def _snapshot(encoder: MultiVectorEncoder) -> MultiVectorEncoder:
    """Return a copy of the encoder with the same weights. A save may change the configuration of the copy."""
    saved: MultiVectorEncoder = _shallow(encoder)
    name, first = next(iter(saved._modules.items()))
    if isinstance(first, Transformer):
        transformer: Any = _shallow(first)
        model: Any = torch_model(getattr(transformer.model, "_orig_mod", transformer.model))  # of torch.compile
        if isinstance(model, nn.Module):
            model = _shallow(model)
            for part in ("config", "generation_config"):
                if part in vars(model):
                    setattr(model, part, copy.deepcopy(getattr(model, part)))
            transformer.model = model
        # A fast tokenizer keeps the options of the last call, and would write them into its file. Another thread may
        # set other options at the same time, so the lock is held while the tokenizer is copied.
        with tokens.tokenizing:
            transformer.processor = copy.deepcopy(transformer.processor)
        backend = getattr(transformer.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        saved._modules[name] = transformer
    return saved


def _shallow(module: Any) -> Any:
    """Return a copy of a module whose dict of submodules can be changed without changing the module."""
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
        # With the identity as projection, neural-cherche gives the transformer's own states. The metadata tell this
        # package that there is no projection.
        state = {"weight": torch.eye(transformer.get_embedding_dimension(), dtype=torch.float32)}
        metadata["embedding_size"] = None
    else:
        # Copies, because torch.save writes the whole memory block in which a tensor lies.
        state = {name: value.detach().cpu().clone() for name, value in linear.state_dict().items()}
        metadata.pop("embedding_size", None)
    transformer.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    # torch.save writes to memory first, so that a full disk raises an OSError and not an error of torch.
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
    # No model card, because making one asks the hub about the base model.
    encoder.save_pretrained(folder, create_model_card=False)


def _check_projection(encoder: MultiVectorEncoder) -> None:
    """Raise ValueError if the projection does not fit the transformer. A load would refuse the checkpoint."""
    linear, transformer = projection(encoder), encoder[0]
    hidden = cast(Any, transformer).get_embedding_dimension()
    if linear is not None and (linear.weight.dim() != 2 or linear.weight.shape[1] != hidden):
        msg = f"linear must fit the transformer, with weight [*, {hidden}]; got weight {list(linear.weight.shape)}"
        raise ValueError(msg)


def _beyond(encoder: MultiVectorEncoder, format: str, settings: dict[str, Any]) -> str | None:
    """Return what the format cannot express about the encoder, in words, or None if it can express everything."""
    if format == "neural-cherche":
        return _beyond_neural_cherche(encoder)
    for name, value in _ALWAYS_SAVED_BY_SENTENCE_TRANSFORMERS.items():
        if settings[name] is not value:
            return f"{name}={settings[name]!r}"
    return None


def _beyond_neural_cherche(encoder: MultiVectorEncoder) -> str | None:
    if getattr(encoder[0], "query_expansion", None) is not None:
        return "query expansion"
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
