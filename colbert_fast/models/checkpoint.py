"""Find out which kind of checkpoint a folder or a repository holds, and load it.

A neural-cherche checkpoint is a transformer, `linear.pt` and `metadata.json`. This file reads it, and it also reads
BGE-M3 and plain transformers. `MultiVectorEncoder` loads the late-interaction checkpoints of sentence-transformers,
PyLate and Stanford ColBERT.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig

from colbert_fast._warnings import warn_caller
from colbert_fast.models.capacity import positions
from colbert_fast.models.checkpoint_checks import (
    check_files,
    check_lengths,
    check_missing,
    check_modules,
    check_numbers,
    check_origin,
    check_tokenizer,
    naming,
    warn_of_fresh,
    warn_of_missing,
)
from colbert_fast.models.file_checks import read_tensors
from colbert_fast.models.files import Files, cache_folder
from colbert_fast.models.keywords import sort_by_config, sort_keywords
from colbert_fast.models.load_report import Report, quiet_loading
from colbert_fast.models.load_request import Request, with_dtype
from colbert_fast.models.projection import Projection, read_projection
from colbert_fast.models.runtimes import Runtime, take_runtime
from colbert_fast.models.settings import SETTINGS, check_settings_of
from colbert_fast.models.staging import reading


@dataclass
class Checkpoint:
    """A loaded encoder, with settings from its files or, where the files have none, from the constructor."""

    encoder: MultiVectorEncoder
    settings: dict[str, Any]
    folder: str
    metadata: dict[str, Any] = field(default_factory=dict)
    # neural-cherche scores the pad rows of a document as zero rows. The other kinds of checkpoint never score padding.
    scores_padding: bool = True
    fresh_projection: bool = False
    # In words: the arguments that the user gave but that are not used, because the files have other values.
    overruled: list[str] = field(default_factory=list)
    # What is to run the transformer in place of torch.
    runtime: Runtime | None = None


def load(
    source: str | os.PathLike[str],
    embedding_size: int | None,
    device: str,
    settings: dict[str, Any],
    given: Collection[str],
    kwargs: dict[str, Any],
) -> Checkpoint:
    """Load any kind of checkpoint that ColBERT knows.

    Parameters
    ----------
    source
        Local folder, or name of a repository on the Hugging Face hub. A local folder is loaded without the network.
    embedding_size
        Dimension of a fresh projection, for a checkpoint that has no projection. None: no projection.
    device
        Device of the encoder.
    settings
        The constructor's values of `SETTINGS`.
    given
        Names of the arguments that the user gave. With a neural-cherche checkpoint the values in the files win, and a
        warning names each given argument that is not used. With the other kinds of checkpoint the given argument wins.
    kwargs
        Keyword arguments of `MultiVectorEncoder`, and of `from_pretrained` of transformers.

    Raises
    ------
    FileNotFoundError
        The folder does not exist; the folder lacks a file that it needs; or the hub does not answer and its cache does
        not hold the checkpoint.
    ImportError
        The packages of the backend are missing.
    TypeError
        A keyword argument that is unknown or given twice.
    ValueError
        A damaged file, which the message names; a projection that does not fit the transformer; or an argument that
        the checkpoint cannot obey.
    """
    kwargs, unsorted = sort_keywords(kwargs)
    runtime, kwargs = take_runtime(kwargs, device)
    with_dtype(kwargs.get("model_kwargs"))
    checked_device(device)
    with reading(source):
        files = Files(source, kwargs)
        if kwargs.get("revision") is not None and os.path.isdir(os.path.expanduser(source)):
            warn_caller(f"revision={kwargs['revision']!r} is not used: {os.fspath(source)!r} is a folder.")
        kwargs = sort_by_config(files, kwargs, unsorted)
        loaded = _load(os.fspath(source), Request(files, embedding_size, device, settings, given, kwargs))
        loaded.runtime = runtime
        return loaded


def _load(name: str, request: Request) -> Checkpoint:
    """Load the checkpoint that the user calls `name`."""
    files = request.files
    linear = files.find("linear.pt")
    metadata = files.read_json("metadata.json")
    if linear is None and "max_length_query" not in metadata:
        metadata = {}  # another program wrote this metadata.json
    is_ours = linear is not None or bool(metadata)
    is_late_interaction = not is_ours and _is_late_interaction(files)
    bge = None if is_ours or is_late_interaction else files.find("colbert_linear.pt")
    check_files(request)
    with quiet_loading() as report, naming(files, report):
        if is_late_interaction:
            loaded = _delegate(request, report)
        elif bge is not None:
            loaded = _load_bge(request, read_projection(bge), bge)
        else:
            loaded = _load_transformer_with(request, linear, metadata)
    check_missing(files, report, loaded.encoder)
    check_lengths(request, loaded.encoder, loaded.settings)
    warn_of_missing(request, report, loaded.encoder)
    if loaded.fresh_projection and request.embedding_size is not None:
        warn_of_fresh(name, request.embedding_size, report)
    if loaded.overruled:
        warn_caller(
            f"{files.source!r} is a neural-cherche checkpoint, so its files win over arguments. "
            f"Not used: {'; '.join(loaded.overruled)}."
        )
    return loaded


def checked_device(device: Any) -> torch.device:
    """Return the device. Raise RuntimeError if torch cannot use it here, and ValueError if it has no memory."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"device must be one that torch can use here; got {device!r}: {reason:.200}"
        raise RuntimeError(msg) from error
    if found.type == "meta":
        msg = "device must have memory for the weights; got 'meta'"
        raise ValueError(msg)
    return found


def projection(encoder: MultiVectorEncoder) -> nn.Linear | None:
    """Return the linear layer that an encoder applies to each token, or None if the encoder has no such layer."""
    for module in encoder:
        if isinstance(module, Dense):
            return module.linear
    return None


def _is_late_interaction(files: Files) -> bool:
    """Return whether the files describe a late-interaction encoder that `MultiVectorEncoder` can load."""
    config = files.read_json("config_sentence_transformers.json")
    # The first two formats of PyLate write the prefixes into this file, and no model_type.
    if config.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in config:
        return True
    for module in files.modules():
        if module["type"].startswith("pylate.") or module["type"].endswith(".MultiVectorMask"):
            return True
        if module["type"].endswith(".Dense"):
            dense = files.read_json(os.path.join(module["path"], "config.json"))
            if dense.get("module_input_name") == "token_embeddings":
                return True
    architectures = files.read_json("config.json").get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        msg = f'{files.find("config.json")} must list names under "architectures"; got {architectures!r:.200}'
        raise ValueError(msg)
    return any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in architectures)


def _delegate(request: Request, report: Report) -> Checkpoint:
    """Let `MultiVectorEncoder` load a checkpoint that it knows. Arguments that the user gave win over the files."""
    files, settings, given = request.files, request.settings, request.given
    check_modules(request)
    encoder = MultiVectorEncoder(files.source, device=request.device, **request.options())
    transformer: Any = encoder[0]
    check_origin(files, encoder)
    check_tokenizer(request, encoder)
    if "linear.bias" in report.weights.get("UNEXPECTED", []):
        _add_bias(files, encoder)
    _unify_dtype(encoder)
    check_numbers(files, encoder)
    size = encoder.get_embedding_dimension()
    if "embedding_size" in given and request.embedding_size != size:
        msg = (
            f"embedding_size must be {size}, as in {files.source!r}; got {request.embedding_size}: "
            "leave the argument out"
        )
        raise ValueError(msg)
    expansion = getattr(transformer, "query_expansion", None)
    limit = _length_limit(encoder)
    if expansion is not None and expansion["strategy"] == "fixed":
        query_length = expansion["length"]
    else:
        query_length = getattr(transformer, "query_length", None)
    document_length = getattr(transformer, "document_length", None)
    own = {
        "max_length_query": query_length or limit or settings["max_length_query"],
        "max_length_document": document_length or limit or settings["max_length_document"],
        "query_prefix": encoder.prompts.get("query") or "",
        "document_prefix": encoder.prompts.get("document") or "",
    }
    settings = {**settings, **{name: value for name, value in own.items() if name not in given}}
    check_settings_of(files.source, settings)
    if "max_length_document" in given:
        transformer.document_length = settings["max_length_document"]
    if "max_length_query" in given and expansion is None:
        transformer.query_length = settings["max_length_query"]
    for side in ("query", "document"):
        if f"{side}_prefix" in given:
            encoder.prompts[side] = settings[f"{side}_prefix"]
    return Checkpoint(encoder, settings, files.folder, scores_padding=False)


def _add_bias(files: Files, encoder: MultiVectorEncoder) -> None:
    """Add the bias to the projection of a Stanford ColBERT. `MultiVectorEncoder` reads the weight but not the bias."""
    for module in encoder:
        if isinstance(module, Dense) and not module.bias:
            path = files.find("model.safetensors") or files.find("pytorch_model.bin")
            if path is None:
                return
            weights = load_file(path) if path.endswith(".safetensors") else read_tensors(path)
            bias = weights["linear.bias"]
            if bias.shape != module.linear.weight.shape[:1]:
                msg = f"{path} must hold a linear.bias of [{len(module.linear.weight)}]; got {list(bias.shape)}"
                raise ValueError(msg)
            module.bias = True
            module.linear.bias = nn.Parameter(bias.to(module.linear.weight))
            return


def _load_bge(request: Request, projection: Projection, path: str) -> Checkpoint:
    """Load a dense checkpoint that has colbert_linear.pt, and use it as FlagEmbedding uses BGE-M3.

    The states of all tokens except [CLS] are projected and normalised. Texts get no prefix and are cut only at the
    length that the model can take. FlagEmbedding divides the score by the number of query tokens; here the score is
    the sum.
    """
    size = projection.weight.shape[0]
    if "embedding_size" in request.given and request.embedding_size != size:
        msg = f"embedding_size must be {size}, as in {path}; got {request.embedding_size}: leave the argument out"
        raise ValueError(msg)
    transformer = _load_transformer(request, None, None)
    own: dict[str, Any] = {"query_prefix": "", "document_prefix": "", "padding": "longest"}
    settings = {**request.settings, **{name: value for name, value in own.items() if name not in request.given}}
    tokenizer: Any = transformer.tokenizer
    first = tokenizer.cls_token or tokenizer.bos_token
    mask = MultiVectorMask([first] if first else [], skiplist_tasks=["query", "document"])
    encoder = _compose(request, transformer, (projection, path), mask, settings)
    if limit := _length_limit(encoder):
        lengths = ("max_length_query", "max_length_document")
        settings |= {name: limit for name in lengths if name not in request.given}
    transformer.query_length, transformer.document_length = (
        settings["max_length_query"],
        settings["max_length_document"],
    )
    return Checkpoint(encoder, settings, request.files.folder, scores_padding=False)


def _load_transformer_with(request: Request, linear: str | None, metadata: dict[str, Any]) -> Checkpoint:
    """Load a transformer with neural-cherche's projection and settings. What the files lack is made fresh."""
    files, size = request.files, request.embedding_size
    settings = {name: metadata.get(name, value) for name, value in request.settings.items()}
    check_settings_of(files.find("metadata.json") or files.source, settings)
    projection = None if linear is None else read_projection(linear)
    if "embedding_size" in metadata and metadata["embedding_size"] is None:
        projection = size = None
    elif projection is not None:
        size = projection.weight.shape[0]
    transformer = _load_transformer(request, settings["max_length_query"], settings["max_length_document"])
    if projection is None and size is not None:
        hidden = transformer.get_embedding_dimension()
        projection = Projection(nn.init.xavier_uniform_(torch.empty(size, hidden)))
    placed = None if projection is None else (projection, str(linear))
    encoder = _compose(request, transformer, placed, MultiVectorMask(), settings)
    overruled = request.overruled({name: settings[name] for name in SETTINGS if name in metadata}, size)
    fresh = linear is None and size is not None
    return Checkpoint(encoder, settings, files.folder, metadata, fresh_projection=fresh, overruled=overruled)


def _length_limit(encoder: MultiVectorEncoder) -> int | None:
    """Return how many tokens a text may have: the lower of the tokenizer's limit and the transformer's positions."""
    # A tokenizer without a limit reports a number such as 10**30.
    limits = [length for length in (encoder.max_seq_length, positions(encoder)) if length and length < 2**20]
    return min(limits, default=None)


def _load_transformer(request: Request, query_length: int | None, document_length: int | None) -> Transformer:
    """Load the transformer alone, from the checkpoint's folder or from its first module's folder."""
    files, kwargs = request.files, request.options()
    access: dict[str, Any] = {
        name: kwargs[name] for name in ("token", "revision", "local_files_only", "trust_remote_code") if name in kwargs
    }
    # Without this argument transformers asks on the terminal whether to run the code of a checkpoint, and waits for an
    # answer.
    access.setdefault("trust_remote_code", False)
    if (cache := cache_folder(kwargs)) is not None:
        access["cache_dir"] = cache
    source = files.source
    # The oldest dense checkpoints of sentence-transformers keep the transformer in a subfolder.
    modules = files.modules()
    subfolder = modules[0]["path"] if modules else ""
    if subfolder and files.is_local:
        source = os.path.join(source, subfolder)
    elif subfolder:
        access["subfolder"] = subfolder
    # neural-cherche saves output_hidden_states=True. Nothing here needs the states of every layer, which cost memory.
    config_kwargs = {"output_hidden_states": False, **access, **(kwargs.get("config_kwargs") or {})}
    model_kwargs = {**access, **(kwargs.get("model_kwargs") or {})}
    if _has_optional_pooler(source, config_kwargs):
        model_kwargs.setdefault("add_pooling_layer", False)
    transformer: Transformer = Transformer(
        source,
        model_kwargs=model_kwargs,
        processor_kwargs={**access, **(kwargs.get("processor_kwargs") or {})},
        config_kwargs=config_kwargs,
        query_length=query_length,
        document_length=document_length,
    )
    return transformer


def _has_optional_pooler(source: str, config_kwargs: dict[str, Any]) -> bool:
    """Return whether the model can be made without its pooler, which late interaction does not use."""
    config = AutoConfig.from_pretrained(source, **config_kwargs)
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    return isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters


def _compose(
    request: Request,
    transformer: Transformer,
    placed: tuple[Projection, str] | None,
    mask: MultiVectorMask,
    settings: dict[str, Any],
) -> MultiVectorEncoder:
    """Put the modules of an encoder together. `placed` holds the projection and the path of its file."""
    modules: list[nn.Module] = [transformer]
    if placed is not None:
        (weight, bias), path = placed
        hidden = transformer.get_embedding_dimension()
        if weight.shape[1] != hidden:
            msg = f"{path} must fit the transformer, with weight [*, {hidden}]; got weight {list(weight.shape)}"
            raise ValueError(msg)
        if not bool(weight.any()):
            msg = f"{path} must hold a projection that is not all zeros: zeros make all tokens alike"
            raise ValueError(msg)
        dense = Dense(
            hidden,
            weight.shape[0],
            bias=bias is not None,
            activation_function=nn.Identity(),
            module_input_name="token_embeddings",
        ).to(weight.dtype)
        dense.linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        modules.append(dense)
    modules += [mask, Normalize(module_input_name="token_embeddings")]
    own = {name: value for name, value in request.options().items() if not name.endswith("_kwargs")}
    prompts = {"query": settings["query_prefix"], "document": settings["document_prefix"]}
    encoder = MultiVectorEncoder(modules=modules, prompts=prompts, device=request.device, **own)
    check_tokenizer(request, encoder)
    _unify_dtype(encoder)
    check_numbers(request.files, encoder)
    return encoder


def _unify_dtype(encoder: MultiVectorEncoder) -> None:
    """Convert the modules that follow the transformer to the dtype of the transformer."""
    dtype = getattr(getattr(encoder[0], "model", None), "dtype", None)
    if isinstance(dtype, torch.dtype):
        for module in list(encoder)[1:]:
            module.to(dtype=dtype)
