"""Sort the keyword arguments that the constructor of ColBERT does not have itself.

Some are arguments of `MultiVectorEncoder`. The others are what users of neural-cherche pass on to `from_pretrained` of
transformers. They go to the model, to the tokenizer or to the configuration, by way of the arguments `model_kwargs`,
`processor_kwargs` and `config_kwargs` of `MultiVectorEncoder`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from sentence_transformers import MultiVectorEncoder
from transformers import CONFIG_MAPPING

from colbert_fast.models.files import Files

_OWN = tuple(
    name
    for name in inspect.signature(MultiVectorEncoder.__init__).parameters
    if name not in ("self", "model_name_or_path", "modules", "device", "prompts")
)
# Names that transformers and sentence-transformers have for the same argument.
_RENAMED = {"cache_dir": "cache_folder", "torch_dtype": "dtype", "use_auth_token": "token"}
# What `from_pretrained` of a model takes, apart from values of its configuration.
_OF_MODEL = (
    *("adapter_kwargs", "add_pooling_layer", "attn_implementation", "code_revision", "device_map", "disable_mmap"),
    *("dtype", "experts_implementation", "force_download", "gguf_file", "ignore_mismatched_sizes", "key_mapping"),
    *("load_in_4bit", "load_in_8bit", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "quantization_config", "state_dict", "tp_plan", "tp_size", "use_kernels"),
    *("use_safetensors", "variant", "weights_only"),
)
# What tokenizers take.
_OF_TOKENIZER = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "additional_special_tokens", "bos_token", "chat_template"),
    *("clean_up_tokenization_spaces", "cls_token", "code_revision", "do_lower_case", "eos_token"),
    *("extra_special_tokens", "fix_mistral_regex", "force_download", "from_slow", "legacy", "mask_token"),
    *("model_max_length", "pad_token", "padding_side", "sep_token", "split_special_tokens", "strip_accents"),
    *("tokenize_chinese_chars", "tokenizer_type", "truncation_side", "unk_token", "use_fast"),
)
_OF_CONFIG = ("code_revision", "force_download")
_TARGETS = {"model_kwargs": _OF_MODEL, "processor_kwargs": _OF_TOKENIZER, "config_kwargs": _OF_CONFIG}
# Entries of a configuration that say what the checkpoint is. Nobody can choose them.
_NOT_CHOSEN = ("architectures", "auto_map", "model_type", "transformers_version")


def sort_keywords(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort keyword arguments by their names alone.

    Returns
    -------
    kwargs, unsorted
        Keyword arguments for `MultiVectorEncoder`; and the rest, which may be values of the model's configuration.

    Raises
    ------
    TypeError
        An argument is given twice, under two names or in two places; or one of the three dicts is no dict.
    """
    kwargs = {name: value for name, value in given.items() if name in _OWN}
    for target in _TARGETS:
        if not isinstance(kwargs.get(target) or {}, Mapping):
            msg = f"{target} must be a dict; got {type(kwargs[target]).__name__}"
            raise TypeError(msg)
    unsorted = {}
    placed: dict[str, str] = {}
    for name, value in given.items():
        if name in _OWN:
            continue
        right = _RENAMED.get(name, name)
        if right in placed or right in kwargs:
            raise _twice(name, placed.get(right, right))
        placed[right] = name
        if right in _OWN:
            kwargs[right] = value
        elif not any(right in names for names in _TARGETS.values()):
            unsorted[name] = value
        for target, names in _TARGETS.items():
            if right in names:
                _place(kwargs, target, name, right, value)
    return kwargs, unsorted


def sort_by_config(files: Files, kwargs: dict[str, Any], unsorted: dict[str, Any]) -> dict[str, Any]:
    """Return `kwargs` with the rest of `sort_keywords` in `config_kwargs`.

    Raises
    ------
    TypeError
        A name that the model's configuration does not have either, or that `config_kwargs` has already.
    """
    if not unsorted:
        return kwargs
    known = _names_in_config(files)
    if unknown := sorted(set(unsorted) - known):
        msg = (
            f"unknown keyword arguments {unknown}; besides its own arguments ColBERT takes {sorted(_OWN)}, options of "
            "from_pretrained, such as attn_implementation and dtype, and values of the model's configuration by their "
            "names. Whatever else the model, the tokenizer or the configuration takes goes into model_kwargs, "
            "processor_kwargs or config_kwargs"
        )
        raise TypeError(msg)
    kwargs = dict(kwargs)
    for name, value in unsorted.items():
        _place(kwargs, "config_kwargs", name, name, value)
    return kwargs


def _place(kwargs: dict[str, Any], target: str, name: str, right: str, value: Any) -> None:
    """Put the argument `name` into the dict `target` of `kwargs`, under the name `right`."""
    held = dict(kwargs.get(target) or {})
    for other in (right, *(old for old, new in _RENAMED.items() if new == right)):
        if other in held:
            raise _twice(name, f"{target}[{other!r}]")
    kwargs[target] = {**held, right: value}


def _twice(name: str, other: str) -> TypeError:
    return TypeError(f"{name} and {other} are one argument that was given twice: leave one of the two out")


def _names_in_config(files: Files) -> set[str]:
    """Return the names of the values that the configuration of the checkpoint's transformer has."""
    modules = files.modules()
    found = files.read_json(os.path.join(modules[0]["path"] if modules else "", "config.json"))
    kind: Any = CONFIG_MAPPING[found["model_type"]] if found.get("model_type") in CONFIG_MAPPING else None
    names = set(found)
    if kind is not None:
        names |= {*kind().to_dict(), *getattr(kind, "attribute_map", {}), "num_labels"}
    return {name for name in names if name not in _NOT_CHOSEN and not name.startswith("_")}
