"""Checks of a whole checkpoint, before and after it is loaded: refuse it, or warn the user.

`checkpoint` calls these functions. They look at several files together, or at the loaded weights; `file_checks` looks
at one file at a time.
"""

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

# The dtypes of the weights that are checked for NaN. Quantised weights are not checked.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The classes whose modules MultiVectorEncoder reads. Old versions of sentence-transformers only have the first class.
# The last class is PyLate's.
_MODEL_TYPES = ("SentenceTransformer", "MultiVectorEncoder", "ColBERT")
# The number of a layer, or a run of such numbers, as in "layer.1." and "layer.{1, 2}.".
_NUMBERS = re.compile(r"(?<=\.)(\d+|\{[^}]*\})(?=\.)")
# The names of the number of layers in configurations.
_LAYER_COUNTS = {"num_hidden_layers", "num_layers", "n_layers", "n_layer"}
# The names that a late-interaction projection can have among the weights of a transformer.
_PROJECTION_NAME = re.compile(r"^(\w+\.)?(linear|compressor|projection|proj|\w*colbert\w*|custom_text_proj)\.weight$")


def check_files(request: Request) -> None:
    """Raise ValueError for damaged files of a checkpoint, and FileNotFoundError for missing ones."""
    files = request.files
    modules = files.modules()
    if not files.is_local:
        config = os.path.join(modules[0]["path"] if modules else "", "config.json")
        check_layers(f"{config} of {files.source!r}", files.read_json(config))
        return
    whole, index = (os.path.join(files.source, f"model.safetensors{end}") for end in ("", ".index.json"))
    is_split = os.path.exists(index) and not os.path.exists(whole)
    if is_split and "HF_ColBERT" in (files.read_json("config.json").get("architectures") or []):
        # sentence-transformers looks for the projection in one file only. It would find older weights and use them.
        msg = f"{index}: the weights of a Stanford ColBERT checkpoint must lie in one file, model.safetensors"
        raise ValueError(msg)
    model_kwargs = request.kwargs.get("model_kwargs") or {}
    usual = not {"gguf_file", "variant"} & set(model_kwargs)
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
            msg = f"{folder} must hold a model, which needs the file config.json; this file is not there"
            raise FileNotFoundError(msg)


def check_modules(request: Request) -> None:
    """Raise ValueError for modules that `MultiVectorEncoder` would load as something else than what was saved."""
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
            # sentence-transformers would use Tanh instead of such an activation function.
            if not isinstance(activation, str) or not activation.startswith("torch."):
                msg = (
                    f'{files.find(name)} must name a class of torch as "activation_function", unless '
                    f"trust_remote_code=True; got {activation!r:.200}"
                )
                raise ValueError(msg)


def check_origin(files: Files, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError for a projection that no file holds, or that is all zeros, so that all tokens are alike.

    `MultiVectorEncoder` makes a random projection for a late-interaction checkpoint that has none.
    """
    is_stanford = not files.modules() and "HF_ColBERT" in (files.read_json("config.json").get("architectures") or [])
    is_named = any(module["type"].endswith(".Dense") for module in files.modules())
    # The random projection is a Dense. A projection of a subclass of Dense is named in modules.json.
    if not is_stanford and not is_named and any(type(module) is Dense for module in encoder):
        msg = (
            f"{files.source!r} says that it is a late-interaction encoder, so it must hold a projection: "
            "a modules.json that names a Dense module, and the folder of that module. It holds no projection"
        )
        raise ValueError(msg)
    for module in encoder:
        # With a residual, the output of a projection of zeros is its input: this is allowed.
        if isinstance(module, Dense) and not module.use_residual and _is_zero(module.linear.weight):
            msg = f"{files.source!r} must hold a projection that is not all zeros: zeros make all tokens alike"
            raise ValueError(msg)


def _is_zero(weight: torch.Tensor) -> bool:
    return not weight.is_meta and not bool(weight.any())


@contextmanager
def naming(files: Files, report: Report) -> Iterator[None]:
    """Turn an error of another package about a checkpoint into a ValueError that names the checkpoint."""
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
    """Raise ValueError for weights that are NaN or infinite."""
    for name, parameter in encoder.named_parameters():
        weight = parameter.detach()
        # If a weight is NaN or infinite, the sum of the weights is so too. To add the weights takes a fraction of the
        # time that it takes to test each weight. A sum can also overflow: then each weight is tested.
        if weight.dtype in _DTYPES and not weight.is_meta and not _sum_is_finite(weight):
            if bool(weight.isfinite().all()):
                continue
            msg = f"{files.source!r} must hold weights that are finite numbers; {name} holds NaN or infinite numbers"
            raise ValueError(msg)


def _sum_is_finite(weight: torch.Tensor) -> bool:
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64):
        # numpy adds on one thread. There are many small tensors, and at each of them torch's threads would wait for
        # each other, which is slow when other processes run too.
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(weight.numpy().sum()))
    return bool(weight.sum(dtype=torch.float32).isfinite())


def check_tokenizer(request: Request, encoder: MultiVectorEncoder) -> None:
    """Raise an error for a tokenizer that does not fit its transformer.

    Raises
    ------
    FileNotFoundError
        The vocabulary is missing. Every word would become the same token.
    ValueError
        The vocabulary holds only special tokens, or an id for which the transformer has no embedding.
    """
    tokenizer = encoder.tokenizer
    names = sorted({*(getattr(tokenizer, "vocab_files_names", None) or {}).values()} - {None})
    if not names:  # this tokenizer makes a token of each byte or character, and needs no vocabulary
        return
    modules = request.files.modules()
    subfolder = modules[0]["path"] if modules else ""
    _check_ids(os.path.join(request.files.source, subfolder), encoder)
    if (request.kwargs.get("processor_kwargs") or {}).get("tokenizer_file"):
        return
    names = sorted({*names, "tokenizer.json"}, key=lambda name: name != "tokenizer.json")
    if not any(request.files.find(os.path.join(subfolder, name)) for name in names):
        folder = os.path.join(request.files.source, subfolder)
        msg = f"{folder} must hold the vocabulary of its tokenizer, one of the files {names}; it holds none of them"
        raise FileNotFoundError(msg)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        msg = f"{os.path.join(request.files.source, subfolder)} must hold a tokenizer with words; it has no words"
        raise ValueError(msg)


def _check_ids(folder: str, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError if the tokenizer has an id for which the transformer's embeddings have no row."""
    try:
        model: Any = encoder[0].model
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):  # a model without this table: it hashes ids, or it is an ONNX model
        return
    words = encoder.tokenizer.get_vocab()
    if not words or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return
    last = max(words, key=words.__getitem__)
    if words[last] >= len(weight):
        msg = (
            f"{folder} must hold a tokenizer whose ids are below {len(weight)}, the number of rows of the "
            f"transformer's embeddings; {last!r} has the id {words[last]}. "
            f"The transformer needs resize_token_embeddings({words[last] + 1})"
        )
        raise ValueError(msg)


def check_lengths(request: Request, encoder: MultiVectorEncoder, settings: dict[str, Any]) -> None:
    """Raise ValueError if the user gave a maximum length that is more than the transformer can take."""
    held = positions(encoder)
    for name in ("max_length_query", "max_length_document"):
        length = settings[name]
        if held is not None and length > held and name in request.given and length == request.settings[name]:
            msg = f"{name} must be at most {held}, the number of positions of the transformer; got {length}"
            raise ValueError(msg)


def check_missing(files: Files, report: Report, encoder: MultiVectorEncoder) -> None:
    """Raise ValueError if the files hold no weight of the transformer at all."""
    model = getattr(encoder[0], "model", None)
    names = [name for name, _ in model.named_parameters()] if isinstance(model, torch.nn.Module) else []
    missing = re.compile("|".join(map(_pattern, report.weights.get("MISSING", []))))
    if names and all("pooler" in name or missing.fullmatch(name) for name in names):
        unread = _shortened(report.weights.get("UNEXPECTED", [])) or "none"
        msg = (
            f"{files.source!r} must hold the weights of its transformer, such as {names[0]}; it holds none of them. "
            f"Weights that it holds and that are not read: {unread}"
        )
        raise ValueError(msg)


def _pattern(name: str) -> str:
    """Return a regular expression for a name of the report, as "layer.{0, 1}.weight" or "layer.{0...11}.weight"."""
    parts = re.split(r"\{(.*?)\}", name)
    for i in range(0, len(parts), 2):
        parts[i] = re.escape(parts[i])
    for i in range(1, len(parts), 2):
        parts[i] = r"\d+" if "..." in parts[i] else f"(?:{parts[i].replace(', ', '|')})"
    return "".join(parts)


def warn_of_missing(request: Request, report: Report, encoder: MultiVectorEncoder) -> None:
    """Warn of weights that are missing and now random, and of layers in the files that the transformer lacks."""
    files = request.files
    unexpected = report.weights.get("UNEXPECTED", [])
    # A parameter is named "0.model.encoder.layer.0...", and in a file perhaps "bert.encoder.layer.0...". So only the
    # ends of the names are compared, with "#" in place of the numbers.
    names = (name.split(".", 2)[-1] for name, _ in encoder.named_parameters())
    layers = tuple({f".{_NUMBERS.sub('#', name)}" for name in names if _NUMBERS.search(name)})
    # A transformer without any layer has no such names. Then every numbered weight that was not read is a layer.
    layers = layers or tuple({f".{_NUMBERS.sub('#', name)}" for name in unexpected if _NUMBERS.search(name)})
    unread = [name for name in unexpected if f".{_NUMBERS.sub('#', name)}".endswith(layers)]
    if unread:
        asked = sorted(_LAYER_COUNTS & set(request.kwargs.get("config_kwargs") or {}))
        reason = f"You asked for this with {asked[0]}" if asked else "num_hidden_layers in config.json may be wrong"
        warn_caller(
            f"{files.source!r} holds layers that its transformer does not have. They are not read: "
            f"{_shortened(unread)}. {reason}."
        )
    # Late interaction does not use the pooler, so its weights may be missing.
    if missing := [name for name in report.weights.get("MISSING", []) if "pooler" not in name]:
        warn_caller(
            f"{files.source!r} lacks weights of its transformer. These weights are random now: {_shortened(missing)}. "
            "The embeddings mean little until the encoder is trained."
        )


def warn_of_fresh(name: str, size: int, report: Report) -> None:
    """Warn that the checkpoint `name` has no projection, so that a random one of `size` dimensions is used."""
    unread = [weight for weight in report.weights.get("UNEXPECTED", []) if _PROJECTION_NAME.match(weight)]
    unread_too = f" (its weights {_shortened(unread)} are not read)" if unread else ""
    warn_caller(
        f"{name!r} has no ColBERT projection (linear.pt){unread_too}: a random projection of {size} dimensions is "
        "used, and scores mean little until it is trained. Load a trained checkpoint, train this one, or pass "
        "embedding_size=None to use the transformer's own states."
    )


def _shortened(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
