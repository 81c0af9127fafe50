"""The ColBERT encoder: texts in, one embedding per token out, and late-interaction scores between texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from colbert_fast._checks import positive_int
from colbert_fast._forks import safe_after_fork
from colbert_fast._maxsim import maxsim_pairs
from colbert_fast._warnings import warn_caller
from colbert_fast.models import checkpoint
from colbert_fast.models.encoding import Encoding, as_texts, pack, padded, pair_up, windows
from colbert_fast.packed import PackedTokens

# Distinct texts whose embeddings `scores` holds at once.
_HELD_TEXTS = 32768


class ColBERT(nn.Module):
    """Late-interaction encoder, a drop-in for neural-cherche's `models.ColBERT`.

    A text gives one L2-normalised embedding per token. The score of a document for a query is
    MaxSim(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>
    (Khattab and Zaharia, 2020).

    `model_name_or_path` holds a neural-cherche checkpoint; or one of `MultiVectorEncoder`
    (sentence-transformers), PyLate or Stanford ColBERT, whose own prompts, lengths, query expansion and
    skiplist are then kept; or any transformer, which gets a fresh projection and a warning that it needs
    training. What the files of a checkpoint say wins over the arguments. A new encoder is in eval mode.

    Parameters
    ----------
    model_name_or_path
        A folder, which never touches the network, or a repository of the Hugging Face hub.
    embedding_size
        Dimension of a fresh projection; None for no projection: the transformer's own states, L2-normalised.
    device
        Where the encoder runs; None takes CUDA, then MPS, then the CPU.
    max_length_query, max_length_document
        Longest query and document in tokens, prefix and special tokens included.
    query_prefix, document_prefix
        Plain text put before every query and document.
    padding
        "max_length" pads what `forward` returns to the maximum length; True or "longest" to the longest text.
        No pad token passes through the transformer either way. With "max_length" a shorter document scores at least
        0 for each query token, as in neural-cherche; otherwise never, where neural-cherche's answer depends on the
        batch.
    truncation
        Cut longer texts to the maximum length.
    add_special_tokens
        Let the tokenizer add its own, such as [CLS] and [SEP].
    freeze_layers_except_last_n
        Train only the last n layers of the transformer, and the projection.
    **kwargs
        Keyword arguments of `MultiVectorEncoder`, such as `model_kwargs={"dtype": torch.bfloat16}`,
        `revision`.

    Attributes
    ----------
    encoder
        The `MultiVectorEncoder` that computes the embeddings.

    Raises
    ------
    FileNotFoundError
        No such folder, or a hub that does not answer.
    TypeError, ValueError
        An argument or a file that makes no encoder.

    Examples
    --------
    >>> encoder = ColBERT("checkpoint", device="cpu")  # doctest: +SKIP
    >>> encoder.scores(["capital of Germany"], ["Berlin is the capital.", "Bananas."])  # doctest: +SKIP
    """

    max_length_query: int
    max_length_document: int
    query_prefix: str
    document_prefix: str
    padding: bool | str
    truncation: bool
    add_special_tokens: bool

    @safe_after_fork
    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        embedding_size: int | None = 128,
        device: str | None = None,
        max_length_query: int = 32,
        max_length_document: int = 350,
        query_prefix: str = "[Q] ",
        document_prefix: str = "[D] ",
        padding: bool | str = "max_length",
        truncation: bool = True,
        add_special_tokens: bool = True,
        freeze_layers_except_last_n: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        settings = {
            "max_length_query": max_length_query,
            "max_length_document": max_length_document,
            "query_prefix": query_prefix,
            "document_prefix": document_prefix,
            "padding": padding,
            "truncation": truncation,
            "add_special_tokens": add_special_tokens,
        }
        checkpoint.check_settings(settings)
        if embedding_size is not None:
            embedding_size = positive_int(embedding_size, "embedding_size")
        if freeze_layers_except_last_n is not None:
            _check_last_n(freeze_layers_except_last_n)
        loaded = checkpoint.load(model_name_or_path, embedding_size, device or _best_device(), settings, kwargs)
        if loaded.fresh_projection:
            name = os.fspath(model_name_or_path)
            warn_caller(
                f"{name!r} has no ColBERT projection (linear.pt): starting from a random one of {embedding_size} "
                "dimensions, whose scores mean little until it is trained. Load a trained checkpoint, train this "
                "one, or pass embedding_size=None for the transformer's own states."
            )
        self.encoder: MultiVectorEncoder = loaded.encoder
        self._metadata = loaded.metadata
        self._scores_padding = loaded.scores_padding
        for name, value in loaded.settings.items():
            setattr(self, name, value)
        if freeze_layers_except_last_n is not None:
            _freeze_layers(self.model, freeze_layers_except_last_n)
        self.eval()

    @property
    def model(self) -> nn.Module:
        """The transformer."""
        transformer: Any = self.encoder[0]
        model: nn.Module = transformer.model
        return model

    @property
    def tokenizer(self) -> Any:
        """The transformer's tokenizer."""
        return self.encoder.tokenizer

    @property
    def linear(self) -> nn.Linear | None:
        """The projection [embedding_size, hidden_size], or None where there is none."""
        return checkpoint.projection(self.encoder)

    @property
    def device(self) -> str:
        """Where the encoder is now."""
        return str(self.encoder.device)

    @property
    def embedding_size(self) -> int:
        """Dimension of one embedding."""
        size: int | None = self.encoder.get_embedding_dimension()
        assert size is not None
        return size

    @safe_after_fork
    def forward(self, texts: Iterable[str], query_mode: bool = True, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Embed texts, with gradients where autograd records.

        Parameters
        ----------
        texts
            n texts. A bare str is refused: neural-cherche read it as a list of characters.
        query_mode
            Embed as queries, or else as documents.
        **kwargs
            For this call: `truncation`, `add_special_tokens`, `padding`, `max_length`.

        Returns
        -------
        dict
            "embeddings": [n, length, embedding_size] in the encoder's dtype, on its device. `length` is the
            maximum length, or that of the longest text where `padding` is not "max_length". The rows of a
            text come first, zero rows after them.

        Raises
        ------
        TypeError, ValueError
            Something else than a list of str, or an option that does not exist.
        """
        encoding = self._encoding(query_mode, kwargs)
        packed = pack(self.encoder, as_texts("texts", texts), encoding)
        longest = int(packed.lengths.max()) if len(packed) else 0
        width = max(encoding.max_length, longest) if encoding.padding == "max_length" else longest
        return {"embeddings": padded(packed, width)}

    def encode(
        self,
        texts: Iterable[str],
        truncation: bool | None = None,
        add_special_tokens: bool | None = None,
        query_mode: bool = True,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Embed texts as `forward` does, without gradients.

        `truncation` and `add_special_tokens` left at None are the encoder's own: neural-cherche 1.4.3
        declares other defaults, and ignores both arguments.
        """
        options = {"truncation": truncation, "add_special_tokens": add_special_tokens}
        kwargs |= {name: value for name, value in options.items() if value is not None}
        with torch.no_grad():
            embeddings: dict[str, torch.Tensor] = self(texts, query_mode=query_mode, **kwargs)
        return embeddings

    @safe_after_fork
    def encode_packed(self, texts: Iterable[str], query_mode: bool = True, **kwargs: Any) -> PackedTokens:
        """Embed texts without gradients, each at its own length, as `scores` compares them.

        Parameters
        ----------
        texts, query_mode, **kwargs
            As for `forward`.

        Returns
        -------
        PackedTokens
            n items. A document that neural-cherche would pad to the maximum length ends in one zero row,
            whose similarity with any query token is 0: MaxSim over these rows is neural-cherche's score.
        """
        with torch.no_grad():
            return self._pack(as_texts("texts", texts), self._encoding(query_mode, kwargs))

    @safe_after_fork
    def scores(
        self,
        queries: Iterable[str],
        documents: Iterable[str],
        batch_size: int = 2,
        tqdm_bar: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """MaxSim of queries with documents, pair by pair.

        Gradients flow in training mode only, where autograd records.

        Parameters
        ----------
        queries, documents
            Two lists of n texts, or one text against n.
        batch_size
            Kept for compatibility: it changes neither results nor memory. Texts pass through the transformer
            in batches of similar length and a fixed number of tokens; equal texts pass once.
        tqdm_bar
            Show a progress bar over the distinct texts.
        **kwargs
            As for `forward`.

        Returns
        -------
        torch.Tensor
            [n], float32 (float64 from a float64 encoder), on the encoder's device.

        Raises
        ------
        TypeError, ValueError
            Something else than lists of str, or lists that do not pair up.
        """
        positive_int(batch_size, "batch_size")
        pairs = pair_up(as_texts("queries", queries), as_texts("documents", documents))
        as_query, as_document = self._encoding(True, kwargs), self._encoding(False, kwargs)
        parts = [torch.zeros(0, device=self.device)]
        work = list(windows(pairs, _HELD_TEXTS))
        bar = tqdm(
            total=sum(len(q_texts) + len(d_texts) for q_texts, d_texts, _ in work),
            desc="Computing scores.",
            unit="text",
            disable=not tqdm_bar,
        )
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()), bar:
            for q_texts, d_texts, indices in work:
                q = self._pack(q_texts, as_query, bar.update)
                d = self._pack(d_texts, as_document, bar.update)
                scores = maxsim_pairs(q, d, indices)
                if self.encoder.similarity_fn_name == "meanmaxsim":
                    scores = scores / q.lengths[indices[:, 0].to(q.lengths.device)].to(scores)
                parts.append(scores)
        return torch.cat(parts)

    @safe_after_fork
    def save_pretrained(self, path: str | os.PathLike[str], format: str = "neural-cherche") -> ColBERT:
        """Write a checkpoint folder and return the encoder.

        Parameters
        ----------
        path
            Folder, made where it does not exist.
        format
            "neural-cherche": transformer, tokenizer, `linear.pt`, `metadata.json`, which neural-cherche 1.4.3
            and this package load. For an encoder without projection `linear.pt` is the identity, with which
            neural-cherche gives the same scores, and `"embedding_size": null` tells this package.
            "sentence-transformers": what `MultiVectorEncoder(path)` loads, with prompts and lengths. That
            format has no word for neural-cherche's pad rows: loaded from it, no document is scored with one.

        Raises
        ------
        ValueError
            Unknown format; or "neural-cherche" for an encoder with query expansion, a skiplist or other
            modules.
        FileExistsError
            `path` is a file; or holds `linear.pt` where "sentence-transformers" is asked for.
        """
        settings = {name: getattr(self, name) for name in checkpoint.SETTINGS}
        checkpoint.save(self.encoder, path, format, settings, self._metadata)
        return self

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Parameters under neural-cherche's names: `model.<base>.*`, `linear.weight`.

        `<base>` is transformers' name of the base model, such as `bert`. neural-cherche's
        masked-language-model head, `model.cls.*` for BERT, is not there; `load_state_dict` ignores it.
        """
        options: dict[str, Any] = {"destination": destination, "prefix": prefix, "keep_vars": keep_vars}
        state: dict[str, Any] = super().state_dict(**options)
        for ours, theirs in self._key_names(prefix):
            for key in [key for key in state if key.startswith(ours)]:
                state[theirs + key.removeprefix(ours)] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for ours, theirs in self._key_names(prefix):
            for key in [key for key in state_dict if key.startswith(theirs)]:
                state_dict[ours + key.removeprefix(theirs)] = state_dict.pop(key)
        for key in [key for key in state_dict if key.startswith(f"{prefix}model.")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _key_names(self, prefix: str) -> list[tuple[str, str]]:
        """Beginnings of our keys, and of neural-cherche's."""
        base = getattr(self.model, "base_model_prefix", "")
        names = [("encoder.0.model.", f"model.{base}." if base else "model.")]
        for name, module in self.encoder.named_children():
            if self.linear is not None and getattr(module, "linear", None) is self.linear:
                names.append((f"encoder.{name}.linear.", "linear."))
        return [(prefix + ours, prefix + theirs) for ours, theirs in names]

    def _pack(
        self, texts: list[str], encoding: Encoding, done: Callable[[int], object] = lambda count: None
    ) -> PackedTokens:
        pad_row = self._scores_padding and not encoding.query_mode and encoding.padding == "max_length"
        return pack(self.encoder, texts, encoding, pad_row=pad_row, done=done)

    def _encoding(self, query_mode: bool, options: dict[str, Any]) -> Encoding:
        encoding = Encoding(
            query_mode,
            self.query_prefix if query_mode else self.document_prefix,
            self.truncation,
            self.add_special_tokens,
            self.padding,
            self.max_length_query if query_mode else self.max_length_document,
        )
        valid = ("truncation", "add_special_tokens", "padding", "max_length")
        if unknown := sorted(set(options) - set(valid)):
            msg = f"unknown options {unknown}; valid ones are {list(valid)}"
            raise TypeError(msg)
        encoding = encoding._replace(**options)
        encoding = encoding._replace(max_length=positive_int(encoding.max_length, "max_length"))
        checkpoint.check_padding(encoding.padding)
        return encoding


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_last_n(last_n: Any) -> None:
    if not isinstance(last_n, int) or isinstance(last_n, bool) or last_n < 0:
        msg = f"freeze_layers_except_last_n must be an int of at least 0, or None; got {last_n!r}"
        raise ValueError(msg)


def _freeze_layers(model: nn.Module, last_n: int) -> None:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        msg = f"freeze_layers_except_last_n needs a transformer with a list of layers; got {type(model).__name__}"
        raise ValueError(msg)
    layers = max(lists, key=len)
    model.requires_grad_(False)
    for layer in list(layers)[max(0, len(layers) - last_n) :]:
        layer.requires_grad_(True)
