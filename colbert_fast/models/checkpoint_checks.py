"""Whether a checkpoint is sound, before it is loaded and after, and what the user is told of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense

from colbert_fast._warnings import warn_caller
from colbert_fast.models.capacity import positions
from colbert_fast.models.file_checks import check_folder, check_layers, name_damage
from colbert_fast.models.files import Files
from colbert_fast.models.load_report import Report
from colbert_fast.models.load_request import Request

# Of weights that are looked at for NaN; quantised ones are not.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Classes whose modules MultiVectorEncoder reads: of sentence-transformers before it had several, of its own, of PyLate.
_MODEL_TYPES = ("SentenceTransformer", "MultiVectorEncoder", "ColBERT")
# Numbers of layers, alone or in a run, as in "layer.1." and "layer.{1, 2}.".
_NUMBERS = re.compile(r"(?<=\.)(\d+|\{[^}]*\})(?=\.)")
# Names that projections of late interaction have among the weights of a transformer.
_PROJECTION_NAME = re.compile(r"^(\w+\.)?(linear|compressor|projection|proj|\w*colbert\w*|custom_text_proj)\.weight$")


def check_files(request: Request) -> None:
    """Raise ValueError or FileNotFoundError for damaged or missing files of a folder."""
    files = request.files
    modules = files.modules()
    if not files.is_local:
        config = os.path.join(modules[0]["path"] if modules else "", "config.json")
        check_layers(f"{config} of {files.source!r}", files.read_json(config))
        return
    whole, index = (os.path.join(files.source, f"model.safetensors{end}") for end in ("", ".index.json"))
    is_split = os.path.exists(index) and not os.path.exists(whole)
    if is_split and "HF_ColBERT" in (files.read_json("config.json").get("architectures") or []):
        # sentence-transformers looks for the projection in one file, and would take it from older weights.
        msg = f"{index}: the weights of a Stanford ColBERT checkpoint must lie in one file, model.safetensors"
        raise ValueError(msg)
    model_kwargs = request.kwargs.get("model_kwargs") or {}
    usual = request.kwargs.get("backend", "torch") == "torch" and not {"gguf_file", "variant"} & set(model_kwargs)
    kinds = [(module["path"], module["type"]) for module in modules] or [("", "Transformer")]
    for path, kind in [("", ""), *kinds]:
        folder = os.path.join(files.source, path)
        needs_files = kind.rpartition(".")[2] in ("Transformer", "Dense")
        if not os.path.isdir(folder) and os.path.lexists(folder):
            msg = f"{folder} must be a folder, as modules.json says"
            raise ValueError(msg)
        if needs_files and not os.path.isdir(folder):
            msg = f"{files.find('modules.json')} names the folder {path!r}, which is not there"
            raise FileNotFoundError(msg)
        is_adapter = os.path.exists(os.path.join(folder, "adapter_config.json"))
        check_folder(folder, weights_needed=needs_files and usual and not is_adapter)
        if needs_files and not is_adapter and not os.path.exists(os.path.join(folder, "config.json")):
            msg = f"{folder} must hold a model, and so the file config.json; it is not there"
            raise FileNotFoundError(msg)


def check_modules(request: Request) -> None:
    """Raise ValueError for modules that `MultiVectorEncoder` would not read as they were saved."""
    files = request.files
    config = files.read_json("config_sentence_transformers.json")
    kind = config.get("model_type", _MODEL_TYPES[0])
    if files.modules() and kind not in _MODEL_TYPES:
        path = files.find("config_sentence_transformers.json")
        msg = (
            f'{path} must have one of {list(_MODEL_TYPES)} as "model_type" beside the modules of a late-interaction '
            f"encoder; got {kind!r:.200}"
        )
        raise ValueError(msg)
    for module in files.modules():
        name = os.path.join(module["path"], "config.json")
        if module["type"].endswith(".Dense") and not request.kwargs.get("trust_remote_code"):
            activation = files.read_json(name).get("activation_function", "torch.nn.Tanh")
            # sentence-transformers would take Tanh for it.
            if not isinstance(activation, str) or not activation.startswith("torch."):
                msg = (
                    f'{files.find(name)} must name a class of torch as "activation_function", unless '
                    f"trust_remote_code=True; got {activation!r:.200}"
                )
                raise ValueError(msg)


def check_origin(files: Files, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError for a projection that `MultiVectorEncoder` made up, or that makes all tokens alike."""
    is_stanford = not files.modules() and "HF_ColBERT" in (files.read_json("config.json").get("architectures") or [])
    is_named = any(module["type"].endswith(".Dense") for module in files.modules())
    # A subclass is named in modules.json; MultiVectorEncoder makes a Dense and nothing else.
    if not is_stanford and not is_named and any(type(module) is Dense for module in encoder):
        msg = (
            f"{files.source!r} says that it is a late-interaction encoder, and so must hold a projection: "
            "a modules.json that names a Dense module, and the folder of that module; it has none"
        )
        raise ValueError(msg)
    for module in encoder:
        # Beside a residual, zeros change nothing.
        if isinstance(module, Dense) and not module.use_residual and _is_zero(module.linear.weight):
            msg = f"{files.source!r} must hold a projection that is not all zeros, with which all tokens are alike"
            raise ValueError(msg)


def _is_zero(weight: torch.Tensor) -> bool:
    return not weight.is_meta and not bool(weight.any())


@contextmanager
def naming(files: Files, report: Report) -> Iterator[None]:
    """Turn what other packages raise over a checkpoint into a ValueError that names the checkpoint."""
    try:
        yield
    except (ImportError, MemoryError, PermissionError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        if files.is_local:
            for module in files.modules() or [{"path": ""}]:
                name_damage(os.path.join(files.source, module["path"]), error)
        if isinstance(error, (ValueError, FileNotFoundError)) and files.source in str(error):
            raise
        misfits = report.weights.get("MISMATCH", []) + report.weights.get("CONVERSION", [])
        reason = f"its weights {_shortened(misfits)} do not fit its config.json" if misfits else str(error)
        msg = f"{files.source!r} cannot be loaded: {type(error).__name__}: {reason}"
        raise ValueError(msg) from error


def check_numbers(files: Files, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError for weights that are NaN."""
    for name, parameter in encoder.named_parameters():
        weight = parameter.detach()
        # A sum is NaN or infinite wherever a number is, and costs a fraction of looking at each.
        if weight.dtype in _DTYPES and not weight.is_meta and not _sum_is_finite(weight):
            if bool(weight.isfinite().all()):
                continue
            msg = f"{files.source!r} must hold weights that are finite numbers; {name} has others"
            raise ValueError(msg)


def _sum_is_finite(weight: torch.Tensor) -> bool:
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64):
        # On one thread: beside other processes, torch's threads wait for each other at each of many small tensors.
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(weight.numpy().sum()))
    return bool(weight.sum(dtype=torch.float32).isfinite())


def check_tokenizer(request: Request, encoder: MultiVectorEncoder) -> None:
    """Raise an error for a tokenizer that does not suit its transformer.

    Raises
    ------
    FileNotFoundError
        No vocabulary, which would make one token of every word.
    ValueError
        No words, or an id that the transformer has no embedding for.
    """
    tokenizer = encoder.tokenizer
    names = sorted({*(getattr(tokenizer, "vocab_files_names", None) or {}).values()} - {None})
    if not names:  # it counts bytes or characters
        return
    modules = request.files.modules()
    subfolder = modules[0]["path"] if modules else ""
    _check_ids(os.path.join(request.files.source, subfolder), encoder)
    if (request.kwargs.get("processor_kwargs") or {}).get("tokenizer_file"):
        return
    names = sorted({*names, "tokenizer.json"}, key=lambda name: name != "tokenizer.json")
    if not any(request.files.find(os.path.join(subfolder, name)) for name in names):
        folder = os.path.join(request.files.source, subfolder)
        msg = f"{folder} must hold the vocabulary of its tokenizer, one of the files {names}; none is there"
        raise FileNotFoundError(msg)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        msg = f"{os.path.join(request.files.source, subfolder)} must hold a tokenizer with words; it has none"
        raise ValueError(msg)


def _check_ids(folder: str, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError if the tokenizer gives an id that the transformer has no row of its embeddings for."""
    try:
        model: Any = encoder[0].model
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):  # such as a model that hashes ids, or one of ONNX
        return
    words = encoder.tokenizer.get_vocab()
    if not words or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return
    last = max(words, key=words.__getitem__)
    if words[last] >= len(weight):
        msg = (
            f"{folder} must hold a tokenizer whose ids are below {len(weight)}, the rows of the transformer's "
            f"embeddings; {last!r} has the id {words[last]}. "
            f"The transformer needs resize_token_embeddings({words[last] + 1})"
        )
        raise ValueError(msg)


def check_lengths(request: Request, encoder: MultiVectorEncoder, settings: dict[str, Any]) -> None:
    """Raise ValueError for a length that the user gave and that the transformer cannot hold."""
    held = positions(encoder)
    for name in ("max_length_query", "max_length_document"):
        length = settings[name]
        if held is not None and length > held and name in request.given and length == request.settings[name]:
            msg = f"{name} must be at most {held}, the positions of the transformer; got {length}"
            raise ValueError(msg)


def check_missing(files: Files, report: Report, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError if not one weight of the transformer was in its files."""
    model = getattr(encoder[0], "model", None)
    names = [name for name, _ in model.named_parameters()] if isinstance(model, torch.nn.Module) else []
    missing = re.compile("|".join(map(_pattern, report.weights.get("MISSING", []))))
    if names and all("pooler" in name or missing.fullmatch(name) for name in names):
        unread = _shortened(report.weights.get("UNEXPECTED", [])) or "none"
        msg = (
            f"{files.source!r} must hold the weights of its transformer, such as {names[0]}; not one of them is there. "
            f"Weights there that are not read: {unread}"
        )
        raise ValueError(msg)


def _pattern(name: str) -> str:
    """Regular expression for the names that the report writes as "layer.{0, 1}.weight" or "layer.{0...11}.weight"."""
    parts = re.split(r"\{(.*?)\}", name)
    for i in range(0, len(parts), 2):
        parts[i] = re.escape(parts[i])
    for i in range(1, len(parts), 2):
        parts[i] = r"\d+" if "..." in parts[i] else f"(?:{parts[i].replace(', ', '|')})"
    return "".join(parts)


def warn_of_missing(files: Files, report: Report, encoder: MultiVectorEncoder) -> None:
    """Warn of weights that transformers filled with random numbers, and of layers that it left out."""
    unexpected = report.weights.get("UNEXPECTED", [])
    # Parameters are named "0.model.encoder.layer.0...", weights of a file perhaps "bert.encoder.layer.0...".
    names = (name.split(".", 2)[-1] for name, _ in encoder.named_parameters())
    layers = tuple({f".{_NUMBERS.sub('#', name)}" for name in names if _NUMBERS.search(name)})
    # A transformer that was made without any layer has no names to compare with.
    layers = layers or tuple({f".{_NUMBERS.sub('#', name)}" for name in unexpected if _NUMBERS.search(name)})
    unread = [name for name in unexpected if f".{_NUMBERS.sub('#', name)}".endswith(layers)]
    if unread:
        warn_caller(
            f"{files.source!r} holds layers that its transformer does not have, and that are not read: "
            f"{_shortened(unread)}. The num_hidden_layers of config.json may be wrong."
        )
    # No pooler takes part in late interaction.
    if missing := [name for name in report.weights.get("MISSING", []) if "pooler" not in name]:
        warn_caller(
            f"{files.source!r} lacks weights of its transformer, which are random now: {_shortened(missing)}. "
            "Its embeddings mean little until it is trained."
        )


def warn_of_fresh(name: str, size: int, report: Report) -> None:
    unread = [weight for weight in report.weights.get("UNEXPECTED", []) if _PROJECTION_NAME.match(weight)]
    unread_too = f" (its weights {_shortened(unread)} are not read)" if unread else ""
    warn_caller(
        f"{name!r} has no ColBERT projection (linear.pt){unread_too}: starting from a random one of {size} "
        "dimensions, whose scores mean little until it is trained. Load a trained checkpoint, train this "
        "one, or pass embedding_size=None for the transformer's own states."
    )


def _shortened(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
