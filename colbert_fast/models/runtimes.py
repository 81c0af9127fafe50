"""Run the transformer with ONNX Runtime or OpenVINO in place of torch: `ColBERT(name, backend="openvino")`.

The transformer is exported to ONNX in memory each time an encoder is loaded, and both libraries read that. The encoder
keeps the weights in torch beside it, so every checkpoint can be loaded with every backend, and an encoder is saved as
without a backend. Nothing here is imported unless a backend is asked for, and the libraries not before they are needed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from colbert_fast._backends import backends
from colbert_fast._extras import need
from colbert_fast.models.capacity import positions
from colbert_fast.models.load_report import quiet_loading
from colbert_fast.models.tokens import Encoding, tokenize

# The packages that the extra of each backend installs, and the numbers that each backend can compute with.
NEEDED = {
    "onnx": {"onnx": "1.17", "onnxruntime": "1.20"},
    "openvino": {"onnx": "1.17", "openvino": "2025.0"},
}
_DTYPES = {"onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16", "int8")}
# What a transformer may read. Other entries of the tokenizer's output are for sentence-transformers.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The export is traced with the first two texts, and tested with longer batches. Relative to the norm of a token, it may
# differ by this.
_TEXTS = ["a text", "", "a text that is much longer than the others " * 8]
_LONGEST = 64
_NOISE = 1e-3
# OpenVINO gives so many neighbouring numbers of a token one scale when it turns them into int8. Fewer are more exact
# and slower.
_GROUP = 128

_Run = Callable[[dict[str, NDArray[Any]]], NDArray[Any]]


class Runtime(NamedTuple):
    """The library that runs the transformer, `"onnx"` or `"openvino"`, and the dtype that it multiplies in."""

    backend: str
    dtype: str


def take_runtime(kwargs: dict[str, Any], device: str) -> tuple[Runtime | None, dict[str, Any]]:
    """Take the backend, and the dtype that goes with it, out of the keyword arguments for `MultiVectorEncoder`.

    Returns
    -------
    runtime, kwargs
        None for torch; and the other arguments.

    Raises
    ------
    ImportError
        The packages of the backend are missing. The message names the extra.
    ValueError
        There is no such backend, the backend has no such dtype, or it does not run on the device.
    """
    kwargs = dict(kwargs)
    backend = kwargs.pop("backend", "torch")
    if backend == "torch":
        return None, kwargs
    if not isinstance(backend, str) or backend not in NEEDED:
        msg = f"backend must be one of {['torch', *NEEDED]}; got {backend!r}"
        raise ValueError(msg)
    model_kwargs = dict(kwargs.pop("model_kwargs", None) or {})
    given = model_kwargs.pop("dtype", model_kwargs.pop("torch_dtype", None))
    dtype = "float32" if given is None else str(given).removeprefix("torch.")
    if dtype not in _DTYPES[backend]:
        msg = f'dtype must be one of {list(_DTYPES[backend])} with backend="{backend}"; got {given!r}'
        raise ValueError(msg)
    if torch.device(device).type != "cpu":
        msg = f'device must be "cpu" with backend="{backend}"; got {device!r}'
        raise ValueError(msg)
    need(f'backend="{backend}"', backend, NEEDED[backend])
    if dtype == "bfloat16" and not _multiplies_bfloat16():
        msg = "dtype must be float32 or int8 on this CPU, which does not multiply bfloat16; got bfloat16"
        raise ValueError(msg)
    return Runtime(backend, dtype), {**kwargs, "model_kwargs": model_kwargs}


class Exported(nn.Module):
    """A transformer whose forward pass another library computes, from an ONNX file in memory.

    It stands in the place of the torch model, which it keeps for its weights and its configuration. It computes no
    gradients. Several threads can use it at once, and a forked child or another process starts the library anew.
    """

    def __init__(self, torch_model: nn.Module, names: list[str], content: bytes, runtime: Runtime) -> None:
        super().__init__()
        self.torch_model: nn.Module = torch_model.requires_grad_(False)
        self.runtime = runtime
        self._names = names
        self._content = content
        # What runs the model, once the library was started in this process.
        self._started: _Run | None = None
        _exported.add(self)

    @property
    def config(self) -> Any:
        """The configuration of the torch model."""
        return self.torch_model.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the torch weights. The embeddings have it too."""
        return next(self.torch_model.parameters()).dtype

    def forward(self, **features: Any) -> BaseModelOutput:
        """Return the last hidden states [n, length, hidden size]. Features that the model does not read are ignored.

        Raises
        ------
        NotImplementedError
            The encoder is in training mode.
        """
        if self.training:
            msg = f'an encoder with backend="{self.runtime.backend}" cannot be trained: load it with backend="torch"'
            raise NotImplementedError(msg)
        ids: Tensor = features["input_ids"]
        run = self._started
        if run is None:
            self._started = run = _start(self._content, self.runtime)
        states = run({name: features[name].cpu().numpy() for name in self._names})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states).to(ids.device, self.dtype))

    def _load_from_state_dict(self, *args: Any) -> None:
        msg = (
            f'weights cannot be loaded into an encoder with backend="{self.runtime.backend}": load them with '
            'backend="torch", save the encoder, and load it with this backend'
        )
        raise NotImplementedError(msg)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_started": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _exported.add(self)


# A forked child has no copy of the libraries' threads. It starts the libraries anew, and what the parent has started is
# kept in memory for ever: to destroy it would wait for those threads.
_exported: weakref.WeakSet[Exported] = weakref.WeakSet()


def _forget() -> None:
    for exported in _exported:
        if exported._started is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(exported._started))
            exported._started = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def torch_model(model: Any) -> Any:
    """Return the torch model of an exported one, and any other model as it is."""
    return model.torch_model if isinstance(model, Exported) else model


def export(encoder: MultiVectorEncoder, encoding: Encoding, runtime: Runtime) -> None:
    """Put an exported transformer in the place of the encoder's torch model.

    Raises
    ------
    ValueError
        The transformer cannot be exported, or the exported one computes something else.
    """
    transformer: Any = encoder[0]
    model: nn.Module = transformer.model
    text = getattr(transformer, "modality_config", {}).get("text", {})
    if text.get("method") != "forward" or text.get("method_output_name") != "last_hidden_state":
        msg = f"a {type(model).__name__} cannot be exported: it must give the states of its last layer for a text"
        raise ValueError(msg)
    longest = min(_LONGEST, positions(encoder) or _LONGEST)
    tokenized = tokenize(encoder, _TEXTS, encoding._replace(truncation=True, max_length=longest), "texts")
    known = transformer.model_forward_params
    names = [name for name in _INPUTS if name in tokenized.columns and (known is None or name in known)]

    def example(texts: list[int]) -> dict[str, Tensor]:
        numbers = torch.tensor(texts)
        features = tokenized.batch(numbers, int(tokenized.lengths[numbers].max()))
        return {name: features[name] for name in names}

    with quiet_loading():
        content = _to_onnx(model, example([0, 1]))
    exact = _start(content, Runtime(runtime.backend, "float32"))
    for texts in ([0, 1, 2], [2]):
        inputs = example(texts)
        with torch.no_grad():
            expected = model(**inputs, return_dict=True).last_hidden_state
        error = (torch.from_numpy(exact({name: x.numpy() for name, x in inputs.items()})) - expected).norm(dim=2)
        error = error[inputs["attention_mask"].bool()] / expected[inputs["attention_mask"].bool()].norm(dim=1)
        if not bool((error <= _NOISE).all()):
            msg = f"a {type(model).__name__} cannot be exported to ONNX: its states differ by {float(error.max()):.1e}"
            raise ValueError(msg)
    if runtime == ("onnx", "int8"):
        content = _quantised(content)
    transformer.model = Exported(model, names, content, runtime).eval()
    transformer.backend = encoder.backend = runtime.backend  # type: ignore[assignment]


class _States(nn.Module):
    """A model with its inputs by position, as the export takes them, and its last hidden states as the result."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True).last_hidden_state


def _to_onnx(model: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """Return the content of an ONNX file that takes batches of every shape."""
    names = list(inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            # They tell of Python values that become constants. `export` tests what they are right for.
            warnings.simplefilter("ignore")
            # The exporter that traces: the newer one needs another package.
            torch.onnx.export(
                _States(model, names).eval(),
                tuple(inputs.values()),
                file,
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes={name: {0: "texts", 1: "length"} for name in [*names, "last_hidden_state"]},
                opset_version=17,
                dynamo=False,
            )
            return file.read_bytes()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        msg = f"a {type(model).__name__} cannot be exported to ONNX: {type(error).__name__}: {reason:.200}"
        raise ValueError(msg) from error


def _start(content: bytes, runtime: Runtime) -> _Run:
    """Start the library, with as many threads as torch has, and return a function that computes the states."""
    if runtime.backend == "onnx":
        return _in_onnxruntime(content)
    return _in_openvino(content, runtime.dtype)


def _in_onnxruntime(content: bytes) -> _Run:
    # When it is imported it starts a thread for telemetry, for which a forked child would wait at its end for ever.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        states: NDArray[Any] = session.run(None, inputs)[0]
        return states

    return run


def _quantised(content: bytes) -> bytes:
    """Return an ONNX file with int8 weights. Tokens become int8 when it runs, with one scale for a whole batch."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load_from_string(content)
    # Without this entry the library writes a warning that the model should be prepared, which brings nothing here.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    # Without VNNI two products are added in 16 bits, which overflow unless the weights have 7 bits.
    found = {backend.name for backend in backends() if backend.unsupported is None}
    narrow = platform.machine() in ("x86_64", "AMD64") and not found & {"cpu:avx512_vnni", "cpu:avx_vnni", "cpu:amx"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options: dict[str, Any] = {"per_channel": True, "reduce_range": narrow, "weight_type": QuantType.QInt8}
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], **options)
        return path.read_bytes()


def _multiplies_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _in_openvino(content: bytes, dtype: str) -> _Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(content, b"")
    # What int8 does not cover, such as the attention, is in bfloat16 where the CPU multiplies it.
    short = dtype == "bfloat16" or (dtype == "int8" and _multiplies_bfloat16())
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if short else "f32",
    }
    if dtype == "int8":
        _narrow_weights(model)
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(_GROUP)
    compiled = core.compile_model(model, "CPU", options)
    # A request serves one thread at a time, and its result is overwritten by its next one.
    of_thread = threading.local()

    def run(inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        states: NDArray[Any] = of_thread.request.infer(inputs)[0].copy()
        return states

    return run


def _narrow_weights(model: Any) -> None:
    """Turn the weights of matrix products into 8 bits, with a scale and a zero point for each output.

    Number w becomes `round(w / scale) + zero`. OpenVINO then turns the tokens into int8 too, when it runs.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        weight = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weight is None or weight.get_type_name() != "Constant" or len(weight.data.shape) != 2:
            continue
        values = weight.data
        axis = 1 if node.get_attributes()["transpose_b"] else 0
        low = np.minimum(values.min(axis, keepdims=True), 0)
        scale = (np.maximum(values.max(axis, keepdims=True), 0) - low) / 255
        scale[scale == 0] = 1
        zero = np.round(-low / scale).astype(np.uint8)
        codes = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
        shifted = ops.subtract(ops.convert(ops.constant(codes), "f32"), ops.convert(ops.constant(zero), "f32"))
        widened = ops.multiply(shifted, ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(widened.output(0))
