"""Checkpoints of late-interaction encoders: which kind a folder holds, loading it, saving it.

A neural-cherche checkpoint is a transformer, `linear.pt` and `metadata.json`; it is read and written here.
Those of sentence-transformers, PyLate and Stanford ColBERT are left to `MultiVectorEncoder`.
"""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig

from colbert_fast._checks import positive_int
from colbert_fast.models.files import Files

FORMATS = ("neural-cherche", "sentence-transformers")

# What metadata.json holds and the constructor of ColBERT takes.
SETTINGS = (
    "max_length_query",
    "max_length_document",
    "query_prefix",
    "document_prefix",
    "padding",
    "truncation",
    "add_special_tokens",
)

_KEYWORDS = tuple(
    name
    for name in inspect.signature(MultiVectorEncoder.__init__).parameters
    if name not in ("self", "model_name_or_path", "modules", "device", "prompts")
)


@dataclass
class Checkpoint:
    """A loaded encoder with the settings its files, or else the constructor, give."""

    encoder: MultiVectorEncoder
    settings: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    # neural-cherche scores the pad rows of a document as zero rows; the other kinds never score padding.
    scores_padding: bool = True
    fresh_projection: bool = False


def load(
    source: str | os.PathLike[str],
    embedding_size: int | None,
    device: str,
    settings: dict[str, Any],
    kwargs: dict[str, Any],
) -> Checkpoint:
    """Load any checkpoint ColBERT knows.

    Parameters
    ----------
    source
        Local folder, or name of a repository on the Hugging Face hub. A folder never touches the network.
    embedding_size
        Dimension of the projection where the checkpoint has none; None for no projection.
    device
        Where the encoder goes.
    settings
        The constructor's values of `SETTINGS`; those in the checkpoint's files win.
    kwargs
        Keyword arguments of `MultiVectorEncoder`.

    Raises
    ------
    FileNotFoundError
        No such folder, or a hub that does not answer: a file is missing only where the hub says so.
    TypeError
        A keyword argument that `MultiVectorEncoder` does not have.
    ValueError
        A file that does not hold what it should, or a `linear.pt` that does not fit the transformer.
    """
    if unknown := sorted(set(kwargs) - set(_KEYWORDS)):
        msg = f"unknown keyword arguments {unknown}; besides its own, ColBERT takes {sorted(_KEYWORDS)}"
        raise TypeError(msg)
    files = Files(os.fspath(source), kwargs)
    if files.is_local:
        kwargs = {**kwargs, "local_files_only": True}
    linear = files.find("linear.pt")
    metadata = files.read_json("metadata.json")
    if "max_length_query" not in metadata:
        metadata = {}
    if linear is None and not metadata and _is_late_interaction(files):
        return _delegate(files.source, device, settings, kwargs)

    settings = {name: metadata.get(name, value) for name, value in settings.items()}
    check_settings(settings)
    weight: torch.Tensor | None = None
    if linear is not None:
        weight = _read_projection(linear)
    if "embedding_size" in metadata and metadata["embedding_size"] is None:
        weight = embedding_size = None
    fresh = weight is None and embedding_size is not None
    transformer = _load_transformer(files, settings, kwargs)
    hidden = transformer.get_embedding_dimension()
    if weight is None and embedding_size is not None:
        weight = nn.init.xavier_uniform_(torch.empty(embedding_size, hidden))
    if weight is not None and weight.shape[1] != hidden:
        msg = f"{linear} must fit the transformer, weight [*, {hidden}]; got {list(weight.shape)}"
        raise ValueError(msg)
    encoder = _compose(transformer, weight, settings, device, kwargs)
    return Checkpoint(encoder, settings, metadata, fresh_projection=fresh)


def save(
    encoder: MultiVectorEncoder,
    path: str | os.PathLike[str],
    format: str,
    settings: dict[str, Any],
    metadata: dict[str, Any],
) -> None:
    """Write a checkpoint folder in one of `FORMATS`; see `ColBERT.save_pretrained`.

    Raises
    ------
    ValueError
        Unknown format, or an encoder that the format cannot express.
    FileExistsError
        `path` is a file, or holds a checkpoint whose files would be read instead of those written.
    """
    if format not in FORMATS:
        msg = f"format must be one of {list(FORMATS)}; got {format!r}"
        raise ValueError(msg)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        msg = f"path must be a folder; got the file {str(folder)!r}"
        raise FileExistsError(msg)
    if format == "neural-cherche":
        _save_neural_cherche(encoder, folder, settings, metadata)
        return
    if (folder / "linear.pt").exists():
        msg = f"path must not hold a neural-cherche checkpoint, whose linear.pt would win; got {str(folder)!r}"
        raise FileExistsError(msg)
    transformer: Any = encoder[0]
    if transformer.query_expansion is None:
        transformer.query_length = settings["max_length_query"]
    transformer.document_length = settings["max_length_document"]
    encoder.prompts.update(query=settings["query_prefix"], document=settings["document_prefix"])
    # A model card looks the base model up on the hub.
    encoder.save_pretrained(str(folder), create_model_card=False)


def projection(encoder: MultiVectorEncoder) -> nn.Linear | None:
    """The token-level linear layer of an encoder, or None where it has none."""
    for module in encoder:
        if isinstance(module, Dense):
            return module.linear
    return None


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError or TypeError for a setting no encoder can have; make the lengths Python's own integers."""
    for name in ("max_length_query", "max_length_document"):
        settings[name] = positive_int(settings[name], name)
    for name in ("query_prefix", "document_prefix"):
        if not isinstance(settings[name], str):
            msg = f"{name} must be a str; got {settings[name]!r}"
            raise TypeError(msg)
    check_padding(settings["padding"])


def check_padding(value: Any) -> None:
    """Raise ValueError unless `value` is a way of padding."""
    if value not in ("max_length", "longest", True):
        msg = f'padding must be "max_length", "longest" or True; got {value!r}'
        raise ValueError(msg)


def _is_late_interaction(files: Files) -> bool:
    config = files.read_json("config_sentence_transformers.json")
    # PyLate before its third format wrote its prefixes there, and no model_type.
    if config.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in config:
        return True
    architectures = files.read_json("config.json").get("architectures") or []
    return any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in architectures)


def _delegate(source: str, device: str, settings: dict[str, Any], kwargs: dict[str, Any]) -> Checkpoint:
    encoder = MultiVectorEncoder(source, device=device, **kwargs)
    transformer: Any = encoder[0]
    expansion = getattr(transformer, "query_expansion", None)
    limit = _length_limit(transformer)
    query_length = expansion["length"] if expansion else getattr(transformer, "query_length", None)
    document_length = getattr(transformer, "document_length", None)
    settings = {
        **settings,
        "max_length_query": query_length or limit or settings["max_length_query"],
        "max_length_document": document_length or limit or settings["max_length_document"],
        "query_prefix": encoder.prompts.get("query") or "",
        "document_prefix": encoder.prompts.get("document") or "",
    }
    return Checkpoint(encoder, settings, scores_padding=False)


def _length_limit(transformer: Any) -> int | None:
    positions = getattr(transformer.model.config, "max_position_embeddings", None)
    # A tokenizer without a limit reports an astronomic one.
    limits = [length for length in (transformer.max_seq_length, positions) if length and length < 2**20]
    return min(limits, default=None)


def _read_projection(path: str) -> torch.Tensor:
    linear = torch.load(path, map_location="cpu", weights_only=True)
    weight = linear.get("weight") if isinstance(linear, dict) else None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        got = sorted(linear) if isinstance(linear, dict) else type(linear).__name__
        msg = f'{path} must hold {{"weight": [embedding_size, hidden_size]}}; got {got}'
        raise ValueError(msg)
    return weight


def _load_transformer(files: Files, settings: dict[str, Any], kwargs: dict[str, Any]) -> Transformer:
    access: dict[str, Any] = {
        name: kwargs[name] for name in ("token", "revision", "local_files_only", "trust_remote_code") if name in kwargs
    }
    if kwargs.get("cache_folder") is not None:
        access["cache_dir"] = kwargs["cache_folder"]
    source = files.source
    # Dense sentence-transformers of the first years keep their transformer in a subfolder.
    modules = files.find("modules.json")
    subfolder = json.loads(Path(modules).read_text(encoding="utf-8"))[0]["path"] if modules else ""
    if subfolder and files.is_local:
        source = os.path.join(source, subfolder)
    elif subfolder:
        access["subfolder"] = subfolder
    # neural-cherche saves output_hidden_states=True; keeping every layer's states would only cost memory.
    config_kwargs = {"output_hidden_states": False, **access, **(kwargs.get("config_kwargs") or {})}
    model_kwargs = {**access, **(kwargs.get("model_kwargs") or {})}
    if kwargs.get("backend", "torch") == "torch" and _has_optional_pooler(source, config_kwargs):
        model_kwargs.setdefault("add_pooling_layer", False)
    transformer: Transformer = Transformer(
        source,
        model_kwargs=model_kwargs,
        processor_kwargs={**access, **(kwargs.get("processor_kwargs") or {})},
        config_kwargs=config_kwargs,
        backend=kwargs.get("backend", "torch"),
        query_length=settings["max_length_query"],
        document_length=settings["max_length_document"],
    )
    return transformer


def _has_optional_pooler(source: str, config_kwargs: dict[str, Any]) -> bool:
    config = AutoConfig.from_pretrained(source, **config_kwargs)
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    return isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters


def _compose(
    transformer: Transformer,
    weight: torch.Tensor | None,
    settings: dict[str, Any],
    device: str,
    kwargs: dict[str, Any],
) -> MultiVectorEncoder:
    modules: list[nn.Module] = [transformer]
    if weight is not None:
        size, hidden = weight.shape
        dense = Dense(hidden, size, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
        dense.linear.load_state_dict({"weight": weight})
        modules.append(dense)
    modules += [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    own = {name: value for name, value in kwargs.items() if not name.endswith("_kwargs")}
    prompts = {"query": settings["query_prefix"], "document": settings["document_prefix"]}
    return MultiVectorEncoder(modules=modules, prompts=prompts, device=device, **own)


def _save_neural_cherche(
    encoder: MultiVectorEncoder, folder: Path, settings: dict[str, Any], metadata: dict[str, Any]
) -> None:
    if reason := _beyond_neural_cherche(encoder):
        msg = f'format "neural-cherche" cannot express {reason}; pass format="sentence-transformers"'
        raise ValueError(msg)
    metadata = {**metadata, **settings}
    transformer: Any = encoder[0]
    linear = projection(encoder)
    if linear is None:
        # The identity gives neural-cherche the raw states; the metadata tell this package to leave it out.
        weight = torch.eye(transformer.get_embedding_dimension())
        metadata["embedding_size"] = None
    else:
        weight = linear.weight.detach().cpu()
        metadata.pop("embedding_size", None)
    transformer.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    torch.save({"weight": weight}, folder / "linear.pt")
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def _beyond_neural_cherche(encoder: MultiVectorEncoder) -> str | None:
    if getattr(encoder[0], "query_expansion", None) is not None:
        return "query expansion"
    for module in encoder:
        if isinstance(module, Dense):
            identity = isinstance(module.activation_function, nn.Identity)
            if module.bias or module.use_residual or not identity or module.linear is not projection(encoder):
                return "a projection other than one linear layer without bias"
        elif isinstance(module, MultiVectorMask):
            if module.skiplist_words or module.keep_only_token_ids:
                return "a skiplist"
        elif not isinstance(module, (Transformer, Normalize)):
            return f"a {type(module).__name__} module"
    if not any(isinstance(module, Normalize) for module in encoder):
        return "embeddings that are not normalised"
    return None
