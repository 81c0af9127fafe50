"""The ColBERT encoder: texts in, one embedding per token out, and late-interaction scores between texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from typing import Any, TypeAlias

import torch
from sentence_transformers import MultiVectorEncoder
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from colbert_fast._checks import positive_int
from colbert_fast._forks import safe_after_fork
from colbert_fast._maxsim import maxsim_pairs
from colbert_fast.models import checkpoint, saving
from colbert_fast.models.arguments import remembers_given
from colbert_fast.models.capacity import positions
from colbert_fast.models.encoding import embed, inference, sees_padding
from colbert_fast.models.settings import SETTINGS, check_padding, check_settings, set_query_length
from colbert_fast.models.texts import Window, as_texts, check_unicode, pair_up, windows
from colbert_fast.models.tokens import Encoding, Tokenized, tokenize, warn_of_cuts
from colbert_fast.packed import PackedTokens

_Side: TypeAlias = tuple[Encoding, Tokenized]
# Bytes of the embeddings that `scores` holds at once: 256 MiB.
_HELD_BYTES = 2**28


class ColBERT(nn.Module):
    """Late-interaction encoder, a drop-in for neural-cherche's `models.ColBERT`.

    A text gives one L2-normalised embedding per token. The score of a document for a query is
    `MaxSim(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>`
    (Khattab and Zaharia, 2020).

    `model_name_or_path` holds a neural-cherche checkpoint; or one of `MultiVectorEncoder`
    (sentence-transformers), PyLate or Stanford ColBERT, whose own prompts, lengths, query expansion and
    skiplist are then kept; or BGE-M3; or any transformer, which gets a fresh projection and a warning that it
    needs training. A new encoder is in eval mode, with weights in float32 whatever the files hold.

    Arguments and files may disagree. With a neural-cherche checkpoint the files win, and a warning names the
    arguments that are not used. With the other kinds your argument wins, but for `embedding_size`, where another
    size than that of the projection is refused. An argument that you leave out is what the files say, or else the
    default. A `MultiVectorEncoder` without lengths takes texts as long as its model does.

    BGE-M3's `colbert_linear.pt` is used as FlagEmbedding uses it: no embedding for the first token, [CLS], no
    prefixes unless they are given, texts as long as the model takes them. FlagEmbedding divides its score by the
    number of the query's embeddings; here the score is the sum.

    Parameters
    ----------
    model_name_or_path
        A folder, which never touches the network, or a repository of the Hugging Face hub. Where the hub cannot
        be asked, or must not be (`local_files_only=True`, HF_HUB_OFFLINE), the snapshot in its cache is read.
    embedding_size
        Dimension of a fresh projection, for a checkpoint without one; None for no projection: the transformer's own
        states, L2-normalised.
    device
        Where the encoder runs; None takes CUDA, then MPS, then the CPU.
    max_length_query, max_length_document
        Longest query and document in tokens, prefix and special tokens included. Where query expansion fills
        every query up to a fixed length, `max_length_query` is this length.
    query_prefix, document_prefix
        Plain text put before every query and document.
    padding
        "max_length" pads what `forward` returns to the maximum length; True or "longest" to the longest text.
        No pad token passes through the transformer either way. With "max_length", neural-cherche checkpoints and
        plain transformers score a document that is shorter than the maximum at least 0 for each query token, as
        neural-cherche does. Otherwise, and with the other kinds of checkpoint, padding never scores.
    truncation
        Cut longer texts to the maximum length.
    add_special_tokens
        Let the tokenizer add its own, such as [CLS] and [SEP].
    freeze_layers_except_last_n
        Train only the last n layers of the transformer, and the projection.
    **kwargs
        Keyword arguments of `MultiVectorEncoder`, such as `model_kwargs={"dtype": torch.bfloat16}`, which gives
        all weights another dtype ("auto": that of the files), or `revision`.

    Attributes
    ----------
    encoder
        The `MultiVectorEncoder` that computes the embeddings.
    model_folder
        Folder that the files came from.
    query_pad_token, original_pad_token, n_mask_tokens
        The tokenizer's mask token and pad token, and a number that nothing uses, as in neural-cherche.

    Raises
    ------
    FileNotFoundError
        No such folder, a file that it needs and lacks, or a hub that does not answer and nothing in its cache.
    TypeError, ValueError
        An argument that no encoder can have or that this checkpoint cannot obey, such as a length beyond the
        transformer's positions; or a damaged file, which the message names. A file is never run as code.

    Examples
    --------
    >>> encoder = ColBERT("checkpoint", device="cpu")  # doctest: +SKIP
    >>> encoder.scores(["capital of Germany"], ["Berlin is the capital.", "Bananas."])  # doctest: +SKIP
    """

    max_length_document: int
    query_prefix: str
    document_prefix: str
    padding: bool | str
    truncation: bool
    add_special_tokens: bool

    # Names of the arguments that the constructor was given.
    _given: frozenset[str]

    @safe_after_fork
    @remembers_given
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
        check_settings(settings)
        if embedding_size is not None:
            embedding_size = positive_int(embedding_size, "embedding_size")
        if freeze_layers_except_last_n is not None:
            _check_last_n(freeze_layers_except_last_n)
        # neural-cherche's base class takes it, keeps it, and its ColBERT does nothing with it.
        self.n_mask_tokens = positive_int(kwargs.pop("n_mask_tokens", 5), "n_mask_tokens")
        loaded = checkpoint.load(
            model_name_or_path, embedding_size, device or _best_device(), settings, self._given, kwargs
        )
        self.encoder: MultiVectorEncoder = loaded.encoder
        self.model_folder = loaded.folder
        self.query_pad_token = getattr(self.tokenizer, "mask_token", None)
        self.original_pad_token = getattr(self.tokenizer, "pad_token", None)
        self._metadata = loaded.metadata
        self._scores_padding = loaded.scores_padding
        for name, value in loaded.settings.items():
            setattr(self, name, value)
        if freeze_layers_except_last_n is not None:
            _freeze_layers(self.model, freeze_layers_except_last_n)
        self.eval()
        self._encoding(True, {})
        as_document = self._encoding(False, {})
        # Asked here, so that no hook of the user sees the text that it takes. An encoder that cannot embed it says so
        # when it is used.
        with suppress(Exception):
            sees_padding(self.encoder, as_document)

    @property
    def max_length_query(self) -> int:
        """Longest query in tokens. Where query expansion fills every query up, it fills up to this length."""
        return self._max_length_query

    @max_length_query.setter
    def max_length_query(self, length: int) -> None:
        set_query_length(self.encoder, length)
        self._max_length_query = length

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
        tokenized = tokenize(self.encoder, as_texts("texts", texts), encoding, "texts")
        warn_of_cuts((encoding, tokenized))
        longest = int(tokenized.rows.max()) if len(tokenized.rows) else 0
        width = max(encoding.max_length, longest) if encoding.padding == "max_length" else longest
        packed = embed(self.encoder, tokenized, encoding, width=width)
        return {"embeddings": packed.tokens.view(len(packed), width, packed.dim)}

    def encode(
        self,
        texts: Iterable[str],
        truncation: bool | None = None,
        add_special_tokens: bool | None = None,
        query_mode: bool = True,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Embed texts as `forward` does, without gradients and without dropout.

        `truncation` and `add_special_tokens` left at None are the encoder's own: neural-cherche 1.4.3
        declares other defaults, and ignores both arguments.

        Where `scores` counts the zero rows behind a document, as described at `padding`,
        `colbert_fast.maxsim_pairwise(q, d, pad="zero")` of these embeddings gives the same scores. Without `pad` the
        zero rows are left out.
        """
        options = {"truncation": truncation, "add_special_tokens": add_special_tokens}
        kwargs |= {name: value for name, value in options.items() if value is not None}
        with inference(self):
            embeddings: dict[str, torch.Tensor] = self(texts, query_mode=query_mode, **kwargs)
        return embeddings

    def encode_queries(self, texts: Iterable[str], **kwargs: Any) -> PackedTokens:
        """Embed queries: `encode_packed(texts, query_mode=True, **kwargs)`."""
        return self.encode_packed(texts, query_mode=True, **kwargs)

    def encode_documents(self, texts: Iterable[str], **kwargs: Any) -> PackedTokens:
        """Embed documents: `encode_packed(texts, query_mode=False, **kwargs)`."""
        return self.encode_packed(texts, query_mode=False, **kwargs)

    @safe_after_fork
    def encode_packed(
        self,
        texts: Iterable[str],
        query_mode: bool,
        *,
        batch_size: int | None = None,
        tqdm_bar: bool = False,
        show_progress_bar: bool | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> PackedTokens:
        """Embed texts without gradients and without dropout, each at its own length, as `scores` compares them.

        All texts are checked and tokenized before the first passes through the transformer. The longest come first:
        memory that does not suffice is missed at once. The result is allocated once, in the order of the texts.

        Parameters
        ----------
        texts
            n texts.
        query_mode
            Embed as queries, or else as documents.
        batch_size
            Texts of one pass through the transformer at most. None: as many as a fixed number of tokens allows. The
            embeddings do not depend on it.
        tqdm_bar
            Show a progress bar over the texts.
        show_progress_bar
            The name that sentence-transformers has for `tqdm_bar`.
        device
            Move the encoder there first. None: the encoder stays where it is.
        **kwargs
            For this call: `truncation`, `add_special_tokens`, `padding`, `max_length`.

        Returns
        -------
        PackedTokens
            n items on the encoder's device. A document that neural-cherche would pad to the maximum length ends in
            one zero row, whose similarity with any query token is 0: MaxSim over these rows is neural-cherche's
            score.

        Raises
        ------
        TypeError, ValueError
            Something else than a list of str, a text that is not Unicode, an option that does not exist, or a text
            too long for the transformer that is not to be cut. The message names the text.

        Warns
        -----
        UserWarning
            Once, with the number of texts that were cut and the length of the longest.
        """
        encoding = self._encoding(query_mode, kwargs)
        listed = as_texts("texts", texts)
        if batch_size is not None:
            positive_int(batch_size, "batch_size")
        if device is not None:
            self.to(checkpoint.checked_device(device))
        tokenized = tokenize(self.encoder, listed, encoding, "texts")
        warn_of_cuts((encoding, tokenized))
        shown = tqdm_bar if show_progress_bar is None else show_progress_bar
        bar = tqdm(total=len(listed), desc=f"Encoding {encoding.side}", unit="text", disable=not shown)
        with inference(self), bar:
            return embed(
                self.encoder,
                tokenized,
                encoding,
                pad_row=self._has_pad_row(encoding),
                batch_size=batch_size,
                done=bar.update,
            )

    @safe_after_fork
    def scores(
        self,
        queries: Iterable[str],
        documents: Iterable[str],
        batch_size: int = 2,
        tqdm_bar: bool = True,
        *,
        length_normalize: bool = False,
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
            in batches of similar length and a fixed number of tokens; at most 256 MiB of embeddings are held at once.
        tqdm_bar
            Show a progress bar over the texts that pass through the transformer. Equal texts pass once, unless the
            distinct texts of both sides are too many to be held.
        length_normalize
            Divide by the number of the query's tokens: embeddings are unit vectors, so that scores lie in [-1, 1].
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

        Warns
        -----
        UserWarning
            Once, with the number of texts that were cut and the length of the longest.
        """
        positive_int(batch_size, "batch_size")
        as_query, as_document = self._encoding(True, kwargs), self._encoding(False, kwargs)
        q_texts, d_texts, pairs = pair_up(as_texts("queries", queries), as_texts("documents", documents))
        sides = (
            (as_query, tokenize(self.encoder, q_texts, as_query, "queries")),
            (as_document, tokenize(self.encoder, d_texts, as_document, "documents")),
        )
        warn_of_cuts(*sides)
        normalize = length_normalize or self.encoder.similarity_fn_name == "meanmaxsim"
        bytes_a_row = self.embedding_size * (self.encoder.dtype or torch.float32).itemsize
        q_sizes, d_sizes = (tokenized.rows * bytes_a_row for _, tokenized in sides)
        work = list(windows(pairs, q_sizes, d_sizes, _HELD_BYTES))
        total = sum(len(window.queries) + len(window.documents) for window in work)
        bar = tqdm(total=total, desc="Computing scores.", unit="text", disable=not tqdm_bar)
        parts = [torch.zeros(0, device=self.device)]
        with nullcontext() if self.training and torch.is_grad_enabled() else inference(self), bar:
            for window in work:
                parts.append(self._scores_of(window, sides, normalize, bar.update))
        places = torch.cat([torch.zeros(0, dtype=torch.int64), *(window.places for window in work)])
        return torch.cat(parts)[places.argsort().to(self.device)]

    @safe_after_fork
    def save_pretrained(self, path: str | os.PathLike[str], format: str = "neural-cherche") -> ColBERT:
        """Write a checkpoint folder and return the encoder, which stays as it is.

        At every moment the folder holds the old checkpoint or the new one, whole: when the process is killed, when
        the disk is full, and while others save to the same path. Files of a checkpoint that are not written anew go,
        of whatever kind that checkpoint was; every other file stays. The new folder takes the name of the old one in
        one step where the system can do this: Linux and macOS on their usual file systems. Elsewhere the old folder is
        set aside for a moment, and put back by the next load or save after a kill.

        A process that works inside the old folder must change to it again (`cd`). A save waits until no
        `ColBERT(path)` reads the folder; other loaders, which open several files, may find one missing or meet both
        checkpoints.

        Parameters
        ----------
        path
            Folder, made where it does not exist, or a link to one. A folder that cannot be moved, as a mount point or
            a folder inside one that cannot be written, is filled file by file, and must hold no checkpoint yet.
        format
            "neural-cherche": transformer, tokenizer, `linear.pt`, `metadata.json`, which neural-cherche 1.4.3
            and this package load. For an encoder without projection `linear.pt` is the identity, with which
            neural-cherche gives the same scores, and `"embedding_size": null` tells this package. A projection's
            bias is written to `linear.pt` too: this package loads it, neural-cherche refuses such a file.
            "sentence-transformers": what `MultiVectorEncoder(path)` loads, with prompts and lengths. That
            format has no word for neural-cherche's pad rows: loaded from it, no document is scored with one, and a
            score can be lower.

        Raises
        ------
        TypeError, ValueError
            Unknown format; settings that no encoder can have; "neural-cherche" for an encoder with query expansion, a
            skiplist or other modules; or "sentence-transformers" where `truncation` or `add_special_tokens` is off.
        FileExistsError
            `path` is a file; or holds `linear.pt` where "sentence-transformers" is asked for; or holds a checkpoint
            and cannot be moved. "neural-cherche" over a checkpoint of another kind replaces that checkpoint.
        OSError
            What the system says, such as a full disk. The folder is as it was.
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        saving.save(self.encoder, path, format, settings, self._metadata)
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

    def _scores_of(
        self, window: Window, sides: tuple[_Side, _Side], normalize: bool, done: Callable[[int], object]
    ) -> torch.Tensor:
        """Scores of the pairs of one window, whose embeddings are released on return."""
        q, d = (
            embed(self.encoder, tokenized, encoding, texts=texts, pad_row=self._has_pad_row(encoding), done=done)
            for (encoding, tokenized), texts in zip(sides, (window.queries, window.documents), strict=True)
        )
        return maxsim_pairs(q, d, window.pairs, length_normalize=normalize)

    def _has_pad_row(self, encoding: Encoding) -> bool:
        return self._scores_padding and not encoding.query_mode and encoding.padding == "max_length"

    def _encoding(self, query_mode: bool, options: dict[str, Any]) -> Encoding:
        if not isinstance(query_mode, bool):
            msg = f"query_mode must be True, for queries, or False, for documents; got {query_mode!r}"
            raise TypeError(msg)
        encoding = Encoding(
            query_mode,
            self.query_prefix if query_mode else self.document_prefix,
            self.truncation,
            self.add_special_tokens,
            self.padding,
            self.max_length_query if query_mode else self.max_length_document,
        )
        if not isinstance(encoding.prefix, str):
            msg = f"{encoding.task}_prefix must be a str; got {encoding.prefix!r}"
            raise TypeError(msg)
        check_unicode(f"{encoding.task}_prefix", encoding.prefix)
        valid = ("truncation", "add_special_tokens", "padding", "max_length")
        if unknown := sorted(set(options) - set(valid)):
            msg = f"unknown options {unknown}; valid ones are {list(valid)}"
            raise TypeError(msg)
        encoding = encoding._replace(**options, of_call="max_length" in options)
        encoding = encoding._replace(max_length=positive_int(encoding.max_length, "max_length"))
        check_padding(encoding.padding)
        for name in ("truncation", "add_special_tokens"):
            if not isinstance(getattr(encoding, name), bool):
                msg = f"{name} must be True or False; got {getattr(encoding, name)!r}"
                raise TypeError(msg)
        return self._within_capacity(encoding)

    def _within_capacity(self, encoding: Encoding) -> Encoding:
        capacity = positions(self.encoder)
        if capacity is None or encoding.max_length < capacity:
            return encoding
        if encoding.of_call and encoding.max_length > capacity:
            msg = f"max_length must be at most {capacity}, the transformer's positions; got {encoding.max_length}"
            raise ValueError(msg)
        return encoding._replace(max_length=capacity, at_capacity=True)


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
