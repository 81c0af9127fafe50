"""The encoder `ColBERT`: it turns texts into one embedding per token, and scores documents for queries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch
from sentence_transformers import MultiVectorEncoder
from torch import nn
from tqdm.auto import tqdm

from colbert_fast._explain import Explanation, explain
from colbert_fast._forks import safe_after_fork
from colbert_fast._integers import positive_int
from colbert_fast._maxsim import maxsim_pairs
from colbert_fast._rerank import rerank
from colbert_fast._spans import in_order
from colbert_fast.models import checkpoint, saving
from colbert_fast.models.capacity import positions
from colbert_fast.models.embedding import embed, inference, sees_padding
from colbert_fast.models.freezing import freeze
from colbert_fast.models.given_arguments import remembers_given
from colbert_fast.models.runtimes import Exported, export, torch_model
from colbert_fast.models.settings import SETTINGS, check_padding, check_settings, set_query_length
from colbert_fast.models.texts import Window, as_texts, check_unicode, pair_up, windows
from colbert_fast.models.tokens import Encoding, Tokenized, tokenize, tokens_of_rows, warn_of_cuts
from colbert_fast.models.workers import check_guard, embed_in_processes
from colbert_fast.packed import PackedTokens

Format: TypeAlias = Literal["neural-cherche", "sentence-transformers"]
_Side: TypeAlias = tuple[Encoding, Tokenized]
# The number of bytes of embeddings that `scores` holds at once: 256 MiB.
_HELD_BYTES = 2**28


class ColBERT(nn.Module):
    """Late-interaction encoder, a drop-in for neural-cherche's `models.ColBERT`.

    A text gives one L2-normalised embedding per token. The score of a document for a query is
    `MaxSim(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>`
    (Khattab and Zaharia, 2020).

    It loads these checkpoints:

    - neural-cherche;
    - `MultiVectorEncoder` (sentence-transformers), PyLate and Stanford ColBERT, each with its own prompts, lengths,
      query expansion and skiplist;
    - BGE-M3. Its `colbert_linear.pt` is used as FlagEmbedding uses it: the first token, [CLS], has no embedding, there
      are no prefixes unless you give some, and texts may be as long as the model can take. FlagEmbedding divides its
      score by the number of the query's embeddings; here the score is the sum;
    - any transformer without a projection. It gets a fresh projection, and a warning says that it needs training.

    A new encoder is in eval mode. Its weights are float32, whatever dtype the files hold.

    Arguments and files may disagree. With a neural-cherche checkpoint the files win, and a warning names the
    arguments that are not used. With the other kinds of checkpoint your argument wins, except `embedding_size`: a size
    that differs from the size of the projection is an error. An argument that you leave out has the value in the
    files, or else the default. A `MultiVectorEncoder` without lengths takes texts as long as its model can take.

    Parameters
    ----------
    model_name_or_path
        A folder, which is loaded without the network, or a repository of the Hugging Face hub. If the hub cannot be
        asked, or must not be asked (`local_files_only=True`, HF_HUB_OFFLINE), the snapshot in its cache is loaded.
    embedding_size
        Dimension of a fresh projection, for a checkpoint that has no projection. None: no projection; the embeddings
        are the transformer's own states, L2-normalised.
    device
        Device of the encoder. None: CUDA if there is one, else MPS, else the CPU.
    max_length_query
        Largest number of tokens of a query, prefix and special tokens included. With query expansion, every query is
        filled up to this length. The defaults 32 and 350 are the lengths in neural-cherche's documentation; its
        release 1.4.3 has 64 and 256: `ColBERT(name, **models.NEURAL_CHERCHE_1_4_3)`.
    max_length_document
        Largest number of tokens of a document, prefix and special tokens included.
    query_prefix
        Plain text that is put before every query.
    document_prefix
        Plain text that is put before every document.
    padding
        "max_length": `forward` pads its result to the maximum length. True or "longest": it pads to the longest text.
        In both cases no pad token passes through the transformer. With "max_length", neural-cherche checkpoints and
        plain transformers give a document that is shorter than the maximum length at least 0 for each query token, as
        neural-cherche does. Otherwise, and with the other kinds of checkpoint, padding never scores.
    truncation
        Whether texts that are longer than the maximum length are cut.
    add_special_tokens
        Whether the tokenizer adds its special tokens, such as [CLS] and [SEP].
    freeze_layers_except_last_n
        Train only the projection and the last n layers of the transformer. None: train everything.
    **kwargs
        Keyword arguments of `MultiVectorEncoder`, such as `revision`; and keyword arguments of transformers'
        `from_pretrained`, such as `attn_implementation`, `cache_dir`, or `dtype=torch.bfloat16`, which gives all
        weights another dtype ("auto": the dtype of the files). They may also be values of the model's configuration,
        such as `hidden_dropout_prob=0.0`, or stand in `model_kwargs`, `processor_kwargs` and `config_kwargs`.

        `backend="onnx"` and `backend="openvino"` run the transformer on the CPU with ONNX Runtime or with OpenVINO, in
        place of torch, and need the extra of the same name. `dtype` is then what they compute in: "float32" (the
        default), "bfloat16" (OpenVINO, on a CPU that multiplies it) or "int8". Such an encoder cannot be trained.

    Attributes
    ----------
    encoder
        The `MultiVectorEncoder` that computes the embeddings.
    model_folder
        The folder that the files were loaded from.
    query_pad_token
        The tokenizer's mask token, as in neural-cherche.
    original_pad_token
        The tokenizer's pad token, as in neural-cherche.
    n_mask_tokens
        A number that neural-cherche has too, and that nothing uses.

    Raises
    ------
    FileNotFoundError
        The folder does not exist; the folder lacks a file that it needs; or the hub does not answer and its cache does
        not hold the checkpoint.
    ImportError
        The packages of the backend are missing.
    TypeError
        An argument of the wrong type; or a keyword argument that is unknown or given twice.
    ValueError
        An argument that no encoder can have or that this checkpoint cannot obey, such as a length above the
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

    # The names of the arguments that the caller gave to the constructor.
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
        # neural-cherche's base class has this argument and stores it. neural-cherche's ColBERT does not use it.
        self.n_mask_tokens: int = positive_int(kwargs.pop("n_mask_tokens", 5), "n_mask_tokens")
        device = device or (_best_device() if kwargs.get("backend", "torch") == "torch" else "cpu")
        loaded = checkpoint.load(model_name_or_path, embedding_size, device, settings, self._given, kwargs)
        self.encoder: MultiVectorEncoder = loaded.encoder
        self.model_folder: str = loaded.folder
        self.query_pad_token: str | None = getattr(self.tokenizer, "mask_token", None)
        self.original_pad_token: str | None = getattr(self.tokenizer, "pad_token", None)
        self._metadata = loaded.metadata
        self._scores_padding = loaded.scores_padding
        # Nobody can load it again.
        self._fresh_projection = loaded.fresh_projection
        for name, value in loaded.settings.items():
            setattr(self, name, value)
        if freeze_layers_except_last_n is not None:
            freeze(self.model, freeze_layers_except_last_n, "freeze_layers_except_last_n")
        self.eval()
        self._encoding(True, {})
        as_document = self._encoding(False, {})
        if loaded.runtime is not None:
            export(self.encoder, as_document, loaded.runtime)
        # This test passes a short text through the encoder. It runs here, so that no hook of the user sees that text.
        # If it raises an error, the same error comes again when the encoder is used.
        with suppress(Exception):
            sees_padding(self.encoder, as_document)

    @property
    def max_length_query(self) -> int:
        """Largest number of tokens of a query. If query expansion fills every query up, it fills up to this length."""
        return self._max_length_query

    @max_length_query.setter
    def max_length_query(self, length: int) -> None:
        set_query_length(self.encoder, length)
        self._max_length_query = length

    @property
    def model(self) -> nn.Module:
        """The transformer."""
        transformer: Any = self.encoder[0]
        model: nn.Module = torch_model(transformer.model)
        return model

    @property
    def tokenizer(self) -> Any:
        """The transformer's tokenizer."""
        return self.encoder.tokenizer

    @property
    def linear(self) -> nn.Linear | None:
        """The projection, with weight [embedding_size, hidden_size], or None if the encoder has no projection."""
        return checkpoint.projection(self.encoder)

    @property
    def device(self) -> str:
        """The device on which the encoder is now."""
        return str(self.encoder.device)

    @property
    def embedding_size(self) -> int:
        """Dimension of one embedding."""
        size: int | None = self.encoder.get_embedding_dimension()
        assert size is not None
        return size

    @safe_after_fork
    def forward(
        self, texts: Iterable[str], query_mode: bool = True, *, packed: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Embed texts. Gradients flow if autograd records.

        Parameters
        ----------
        texts
            n texts. A str that is not in a list is refused; neural-cherche treated it as a list of characters.
        query_mode
            True: embed as queries. False: embed as documents.
        packed
            Whether to return `PackedTokens`, which hold each text at its own length, instead of one padded tensor.
        **kwargs
            Other values for this call: `truncation`, `add_special_tokens`, `padding`, `max_length`.

        Returns
        -------
        dict
            "embeddings": [n, length, embedding_size] in the encoder's dtype, on the encoder's device. `length` is the
            maximum length if `padding` is "max_length", or else the length of the longest text. The rows of a text
            come first, and zero rows after them.

            With `packed=True`: `PackedTokens` of n items, with gradients. If neural-cherche would pad a document and
            score the zero rows after it, one zero row is kept. So MaxSim over the items is the score that
            neural-cherche computes from the padded tensor.

        Raises
        ------
        TypeError, ValueError
            The texts are not a list of str, or an option does not exist.
        """
        encoding = self._encoding(query_mode, kwargs)
        if not isinstance(packed, bool):
            msg = f"packed must be True or False; got {packed!r}"
            raise TypeError(msg)
        tokenized = tokenize(self.encoder, as_texts("texts", texts), encoding, "texts")
        warn_of_cuts((encoding, tokenized))
        longest = int(tokenized.rows.max()) if len(tokenized.rows) else 0
        full = encoding.max_length if encoding.padding == "max_length" else longest
        if packed:
            pads = self._scores_padding and not query_mode
            return {"embeddings": embed(self.encoder, tokenized, encoding, pad_row=pads, full=full)}
        width = max(full, longest)
        padded = embed(self.encoder, tokenized, encoding, width=width)
        return {"embeddings": padded.tokens.view(len(padded), width, padded.dim)}

    if TYPE_CHECKING:  # what torch's Module takes and returns is Any

        @overload
        def __call__(
            self, texts: Iterable[str], query_mode: bool = True, *, packed: Literal[False] = False, **kwargs: Any
        ) -> dict[str, torch.Tensor]: ...
        @overload
        def __call__(
            self, texts: Iterable[str], query_mode: bool = True, *, packed: Literal[True], **kwargs: Any
        ) -> dict[str, PackedTokens]: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def encode(
        self,
        texts: Iterable[str],
        truncation: bool | None = None,
        add_special_tokens: bool | None = None,
        query_mode: bool = True,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Embed texts as `forward` does, without gradients and without dropout.

        If `truncation` or `add_special_tokens` is None, the encoder's own value is used. (neural-cherche 1.4.3
        declares other defaults, but ignores both arguments.)

        `scores` may count the zero rows after a document; see the parameter `padding` of the class.
        `colbert_fast.maxsim_pairwise(q, d, pad="zero")` of these embeddings then gives the same scores. Without `pad`
        the zero rows are left out.
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
        desc: str | None = None,
        device: str | torch.device | None = None,
        devices: Sequence[str | torch.device] | None = None,
        **kwargs: Any,
    ) -> PackedTokens:
        """Embed texts without gradients and without dropout, each text at its own length, as `scores` needs them.

        All texts are checked and tokenized before the first text passes through the transformer. The longest texts
        pass first: if the memory is too small, the error comes at once. Equal texts pass once.
        The result is allocated once, and its items have the order of the texts; but in ``tokens`` they do not follow
        one another, so save the result by its ``save`` and not by its ``tokens`` and ``lengths``.

        Parameters
        ----------
        texts
            n texts.
        query_mode
            True: embed as queries. False: embed as documents.
        batch_size
            Largest number of texts of one pass through the transformer. None: a fixed number of tokens is the only
            limit. The embeddings do not depend on this number but for rounding, which int8 makes large.
        tqdm_bar
            Whether to show a progress bar over the texts.
        show_progress_bar
            Another name for `tqdm_bar`, as in sentence-transformers.
        desc
            The name of the progress bar.
        device
            The device to which the encoder moves first. None: the encoder stays where it is.
        devices
            Devices of processes that share the texts, such as ``["cuda:0", "cuda:1"]`` or ``["cpu", "cpu"]``. Each
            call starts one process for each device, which takes seconds, with a copy of the encoder; the result is on
            the CPU. As with every such pool, a script must start it below ``if __name__ == "__main__":``.
        **kwargs
            Other values for this call: `truncation`, `add_special_tokens`, `padding`, `max_length`.

        Returns
        -------
        PackedTokens
            n items of [length, embedding_size] in the encoder's dtype, on the encoder's device. If neural-cherche
            would pad a document to the maximum length, the document ends in one zero row here. The similarity of this
            row with any query token is 0, so MaxSim over the rows is neural-cherche's score.

        Raises
        ------
        TypeError, ValueError
            The texts are not a list of str; a text is not Unicode; an option does not exist; or a text must not be cut
            and is too long for the transformer. The message names the text.
        RuntimeError
            There is no such device; or a process of ``devices`` ended too early.

        Warns
        -----
        UserWarning
            Once per call, with the number of texts that were cut and the length of the longest text.
        """
        encoding = self._encoding(query_mode, kwargs)
        listed = as_texts("texts", texts)
        if batch_size is not None:
            positive_int(batch_size, "batch_size")
        if device is not None and devices is not None:
            msg = f"give device or devices, not both; got {device!r} and {devices!r}"
            raise ValueError(msg)
        if device is not None:
            self.to(checkpoint.checked_device(device))
        if devices is not None:
            check_guard()
        places = None if devices is None else _checked_devices(devices)
        tokenized = tokenize(self.encoder, listed, encoding, "texts")
        warn_of_cuts((encoding, tokenized))
        shown = tqdm_bar if show_progress_bar is None else show_progress_bar
        bar = tqdm(total=len(listed), desc=desc or f"Encoding {encoding.plural}", unit="text", disable=not shown)
        distinct: dict[str, int] = {}
        column = [distinct.setdefault(text, number) for number, text in enumerate(listed)]
        first = torch.tensor(list(distinct.values()), dtype=torch.int64)
        options: dict[str, Any] = {"pad_row": self._has_pad_row(encoding), "batch_size": batch_size, "texts": first}
        with inference(self), bar:
            if places is None or not listed:
                found = embed(self.encoder, tokenized, encoding, done=bar.update, **options)
            else:
                found = embed_in_processes(
                    self.encoder, tokenized, encoding, devices=places, done=bar.update, **options
                )
            bar.update(len(listed) - len(first))
        if len(first) < len(listed):
            items = torch.searchsorted(first, torch.tensor(column)).to(found.device)
            # Each text gets rows of its own.
            found = PackedTokens._of(in_order(found[items]._rows()), ragged=True)
        return found

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
        """Compute the MaxSim of queries with documents, pair by pair.

        Gradients flow if the encoder is in training mode and autograd records.

        Parameters
        ----------
        queries, documents
            Two lists of n texts, or a list of one text and a list of n texts.
        batch_size
            Kept for compatibility. It changes neither the scores nor the memory: texts of similar length pass through
            the transformer together, in batches of a fixed number of tokens, and at most 256 MiB of embeddings are
            held at once.
        tqdm_bar
            Whether to show a progress bar over the texts that pass through the transformer. Equal texts pass once,
            unless the embeddings of both sides are too large to be held at once.
        length_normalize
            Divide each score by the number of the query's tokens. Embeddings are unit vectors, so these scores lie in
            [-1, 1].
        **kwargs
            As for `forward`.

        Returns
        -------
        torch.Tensor
            [n], float32 (float64 from a float64 encoder), on the encoder's device.

        Raises
        ------
        TypeError, ValueError
            The texts are not lists of str, or the two lists do not pair up.

        Warns
        -----
        UserWarning
            Once per call, with the number of texts that were cut and the length of the longest text.
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

    @overload
    def rerank(  # type: ignore[overload-overlap]  # a str is an iterable of str too
        self,
        query: str,
        documents: Iterable[Any],
        k: int | None = None,
        *,
        text: str | Sequence[str] = "text",
        key: str = "id",
        normalize: bool = False,
        show_progress_bar: bool = False,
        backend: str | None = None,
    ) -> list[dict[str, Any]]: ...
    @overload
    def rerank(
        self,
        query: Iterable[str],
        documents: Iterable[Any],
        k: int | None = None,
        *,
        text: str | Sequence[str] = "text",
        key: str = "id",
        normalize: bool = False,
        show_progress_bar: bool = False,
        backend: str | None = None,
    ) -> list[list[dict[str, Any]]]: ...
    def rerank(
        self,
        query: str | Iterable[str],
        documents: Iterable[Any],
        k: int | None = None,
        *,
        text: str | Sequence[str] = "text",
        key: str = "id",
        normalize: bool = False,
        show_progress_bar: bool = False,
        backend: str | None = None,
    ) -> Any:
        """Rank documents for one query or for many: `colbert_fast.rerank` with this encoder, which has the arguments.

        The scores are those of `scores`. No gradients flow.
        """
        options: dict[str, Any] = {"text": text, "key": key, "normalize": normalize}
        return rerank(self, query, documents, k, **options, show_progress_bar=show_progress_bar, backend=backend)

    @safe_after_fork
    def explain(self, query: str, document: str) -> Explanation:
        """Say which document token answered each query token: `colbert_fast.explain(self, query, document)`."""
        return explain(self, query, document)

    def _tokens_of_rows(self, text: str, query_mode: bool) -> tuple[list[int], list[bool], str, Any]:
        """Return the tokens of one text, for `explain`.

        Returns
        -------
        ids, kept, prefix, whole
            The tokens that pass through the transformer; which of them have an embedding; the prefix; and what the
            tokenizer gives for prefix and text without any cut.
        """
        encoding = self._encoding(query_mode, {})
        ids, kept, whole = tokens_of_rows(self.encoder, text, encoding)
        return ids, kept, encoding.prefix, whole

    @safe_after_fork
    def save_pretrained(self, path: str | os.PathLike[str], format: Format = "neural-cherche") -> ColBERT:
        """Write a checkpoint folder, and return the encoder. The encoder does not change.

        At every moment the folder holds the whole old checkpoint or the whole new one: when the process is killed,
        when the disk is full, and while other processes save to the same path. Old files of a checkpoint of any kind
        are removed if the save does not write them anew. Every other file stays. The new folder takes the name of the
        old folder in one step if the system can do this, as Linux and macOS can on their usual file systems. Elsewhere
        the old folder is set aside for a moment. If the process is killed in this moment, the next load or save puts
        the old folder back.

        A process whose working folder is the old folder must change to the folder again (`cd`). A save waits until no
        `ColBERT(path)` reads the folder. Other libraries open several files one after another, so during a save they
        may miss a file or read files of both checkpoints.

        Parameters
        ----------
        path
            A folder, which is made if it does not exist, or a link to a folder. A folder that cannot be moved, such as
            a mount point or a folder whose parent cannot be written, is filled file by file. It must not hold a
            checkpoint yet.
        format
            "neural-cherche": transformer, tokenizer, `linear.pt` and `metadata.json`. neural-cherche 1.4.3 and this
            package load it. For an encoder without projection `linear.pt` is the identity, so that neural-cherche
            gives the same scores, and `"embedding_size": null` in `metadata.json` tells this package that there is no
            projection. The bias of a projection is written to `linear.pt` too: this package loads it, but
            neural-cherche refuses such a file.
            "sentence-transformers": a folder that `MultiVectorEncoder(path)` loads, with prompts and lengths. This
            format cannot express neural-cherche's pad rows. After a load from it no document is scored with a pad row,
            so a score can be lower.

        Raises
        ------
        TypeError, ValueError
            The format is unknown; a setting has a value that no encoder can have; the format is "neural-cherche" and
            the encoder has query expansion, a skiplist or other modules; or the format is "sentence-transformers" and
            `truncation` or `add_special_tokens` is False.
        FileExistsError
            `path` is a file; it holds `linear.pt` and the format is "sentence-transformers"; or it holds a checkpoint
            and cannot be moved. (With the format "neural-cherche", a checkpoint of another kind is replaced.)
        OSError
            An error of the system, such as a full disk. The folder stays as it was.
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        saving.save(self.encoder, path, format, settings, self._metadata)
        return self

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return the parameters under neural-cherche's names: `model.<base>.*` and `linear.weight`.

        `<base>` is the name that transformers gives to the base model, such as `bert`. neural-cherche's
        masked-language-model head (`model.cls.*` for BERT) is left out, and `load_state_dict` ignores it.
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
        """Return pairs of prefixes of keys: our prefix, and neural-cherche's prefix for the same parameters."""
        base = getattr(self.model, "base_model_prefix", "")
        exported = isinstance(self.encoder[0].model, Exported)
        ours = "encoder.0.model.torch_model." if exported else "encoder.0.model."
        names = [(ours, f"model.{base}." if base else "model.")]
        for name, module in self.encoder.named_children():
            if self.linear is not None and getattr(module, "linear", None) is self.linear:
                names.append((f"encoder.{name}.linear.", "linear."))
        return [(prefix + ours, prefix + theirs) for ours, theirs in names]

    def _scores_of(
        self, window: Window, sides: tuple[_Side, _Side], normalize: bool, done: Callable[[int], object]
    ) -> torch.Tensor:
        """Score the pairs of one window. The embeddings of the window are released on return."""
        q, d = (
            embed(self.encoder, tokenized, encoding, texts=texts, pad_row=self._has_pad_row(encoding), done=done)
            for (encoding, tokenized), texts in zip(sides, (window.queries, window.documents), strict=True)
        )
        return maxsim_pairs(q, d, window.pairs, length_normalize=normalize)

    def _has_pad_row(self, encoding: Encoding) -> bool:
        """Return whether a text that is shorter than the maximum length ends in a zero row, which scores 0."""
        return self._scores_padding and not encoding.query_mode and encoding.padding == "max_length"

    def _encoding(self, query_mode: bool, options: dict[str, Any]) -> Encoding:
        """Return how a call turns texts into rows: the encoder's settings, and the checked options of the call."""
        if not isinstance(query_mode, bool):
            msg = f"query_mode must be True (queries) or False (documents); got {query_mode!r}"
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
            msg = f"{encoding.side}_prefix must be a str; got {encoding.prefix!r}"
            raise TypeError(msg)
        check_unicode(f"{encoding.side}_prefix", encoding.prefix)
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
        """Lower the maximum length to the transformer's positions. Raise ValueError if the call asked for more."""
        capacity = positions(self.encoder)
        if capacity is None or encoding.max_length < capacity:
            return encoding
        if encoding.of_call and encoding.max_length > capacity:
            msg = (
                f"max_length must be at most {capacity}, the number of the transformer's positions; "
                f"got {encoding.max_length}"
            )
            raise ValueError(msg)
        return encoding._replace(max_length=capacity, at_capacity=True)


def _checked_devices(devices: Sequence[str | torch.device]) -> list[torch.device]:
    if not isinstance(devices, (list, tuple)) or not devices or None in devices:
        msg = f"devices must be a list of one device or more; got {devices!r}"
        raise ValueError(msg)
    return [checkpoint.checked_device(device) for device in devices]


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_last_n(last_n: Any) -> None:
    if not isinstance(last_n, int) or isinstance(last_n, bool) or last_n < 0:
        msg = f"freeze_layers_except_last_n must be an int of at least 0, or None; got {last_n!r}"
        raise ValueError(msg)
