"""Texts in, the best documents out: embeds with any late-interaction encoder, and scores exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch

from colbert_fast._backends import named
from colbert_fast._encoders import encode, uses_mean
from colbert_fast._integers import positive_int
from colbert_fast._topk import topk
from colbert_fast.packed import PackedTokens

# How far the norm of a unit vector may be from 1. A vector of a half dtype is rounded after it is normalised.
_UNIT = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
_KINDS = "a text, a dict with a text, or a tuple (id, text)"


class _Document(NamedTuple):
    id: Any
    text: str
    fields: Mapping[str, Any]  # what the caller's dict holds


@overload
def rerank(
    model: Any,
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
    model: Any,
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
    model: Any,
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
    """Rank documents for one query or for many, by the score that the model itself gives.

    Every distinct text is embedded once, whatever the number of queries. Nothing is kept between two calls: to rank the
    same documents again and again, embed them once and use :func:`topk`.

    Parameters
    ----------
    model
        ``colbert_fast.models.ColBERT``, ``sentence_transformers.MultiVectorEncoder`` or ``pylate.models.ColBERT``.
    query
        One text, or several texts in any iterable. An empty text is a query like any other.
    documents
        An iterable. Each document is a text, a dict with a text, or a tuple ``(id, text)``. All queries get the same
        documents. Or, with several queries, a list for each query with its own candidates.
    k
        How many documents to return for each query, 1 or more. None: all.
    text
        The field of a dict that holds the text, or the names of several fields, which are joined by spaces, as ``on``
        in neural-cherche.
    key
        The field of a dict that holds the id. A document without an id has its position as id: in ``documents``, or in
        the list of its query. Ids may repeat, and may be of any type.
    normalize
        Give scores from 0 to 1: the mean over the query's tokens of their best cosine, and 0 if it is negative.
        The order of the documents does not change.
    show_progress_bar
        Whether the model shows its progress bar.
    backend
        As in :func:`maxsim`.

    Returns
    -------
    list of dict, or list of list of dict
        For one query: ``[{"id": ..., "score": float, "text": ...}, ...]``, best first. Equal scores keep the order of
        the documents; NaN comes first. The other fields of a dict come back too, but ``id``, ``score`` and ``text``
        (what was embedded) are set by this function. For several queries: such a list for each query.

    Raises
    ------
    TypeError
        A model that is no late-interaction encoder; a query or a text that is not a str; a document of another kind.
    ValueError
        A dict without a field that ``text`` names; more or fewer lists of candidates than queries; a bad ``k`` or
        ``backend``; or ``normalize`` with a model whose embeddings are no unit vectors.

    Notes
    -----
    The score is MaxSim as in :func:`maxsim`, or MeanMaxSim if the model was made for it (``similarity_fn_name`` of
    sentence-transformers). For ``models.ColBERT`` the method ``scores`` gives the same score, with the same padding.
    PyLate's own ``rank.rerank`` pads the documents of a query with rows of zeros that can win; here nothing is padded.

    Examples
    --------
    >>> encoder = models.ColBERT("checkpoint")  # doctest: +SKIP
    >>> cf.rerank(encoder, "capital of Germany", ["Bananas.", "Berlin is the capital."], k=1)  # doctest: +SKIP
    [{'id': 1, 'score': 7.3, 'text': 'Berlin is the capital.'}]
    """
    if k is not None:
        k = positive_int(k, "k")
    if backend is not None:
        named(backend)
    queries = [query] if isinstance(query, str) else _queries(query)
    fields = _fields(text, key)
    one = isinstance(query, str)
    found, candidates = _read(documents, len(queries), fields, key, one_query=one)
    results: list[list[dict[str, Any]]] = [[] for _ in queries]
    if queries and found:
        q = _embedded(model, queries, True, normalize, show_progress_bar)
        d = _embedded(model, [document.text for document in found], False, normalize, show_progress_bar)
        most = len(found) if candidates is None else max(map(len, candidates))
        scores, numbers = topk(
            q,
            d,
            most if k is None else min(k, most),
            candidates=candidates,
            length_normalize=normalize or uses_mean(model),
            backend=backend,
        )
        if normalize:
            scores = scores.clamp(0, 1)
        for row, result in zip(zip(scores.tolist(), numbers.tolist(), strict=True), results, strict=True):
            result += [_result(found[number], score) for score, number in zip(*row, strict=True) if number >= 0]
    return results[0] if one else results


def _queries(query: Any) -> list[str]:
    if not isinstance(query, Iterable) or isinstance(query, (bytes, Mapping)):
        msg = f"query must be a text or a list of texts; got {type(query).__name__}"
        raise TypeError(msg)
    queries = list(query)
    for i, one in enumerate(queries):
        if not isinstance(one, str):
            msg = f"query must be a text or a list of texts; query[{i}] is {type(one).__name__}"
            raise TypeError(msg)
    return queries


def _fields(text: Any, key: Any) -> list[str]:
    """Check the names of fields, and return the names of the fields that hold text."""
    names = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names):
        msg = f"text must be the name of a field or a list of names; got {text!r}"
        raise TypeError(msg)
    if not isinstance(key, str):
        msg = f"key must be the name of a field; got {key!r}"
        raise TypeError(msg)
    return names


def _read(
    documents: Any, num_queries: int, fields: list[str], key: str, *, one_query: bool
) -> tuple[list[_Document], list[torch.Tensor] | None]:
    """Return all documents; and if every query has its own, the numbers of the documents of each query."""
    table = hasattr(documents, "columns")  # iterating over a table of pandas gives the names of its columns
    if table or isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        hint = ": list(documents.items()) makes pairs (id, text)" if isinstance(documents, Mapping) else ""
        hint = ': documents.to_dict("records") makes dicts' if table else hint
        msg = f"documents must be a list of documents; got {type(documents).__name__}{hint}"
        raise TypeError(msg)
    listed = list(documents)
    lists = [isinstance(entry, list) for entry in listed]
    if one_query or not any(lists):
        return [_document(entry, i, f"documents[{i}]", fields, key) for i, entry in enumerate(listed)], None
    if not all(lists):
        i = lists.index(False)
        msg = f"documents must hold a list for every query, or none; documents[{i}] is {type(listed[i]).__name__}"
        raise TypeError(msg)
    if len(listed) != num_queries:
        msg = f"documents needs one list of candidates per query; got {len(listed)} lists for {num_queries} queries"
        raise ValueError(msg)
    flat: list[_Document] = []
    candidates = []
    for j, some in enumerate(listed):
        start = len(flat)
        flat += [_document(entry, i, f"documents[{j}][{i}]", fields, key) for i, entry in enumerate(some)]
        candidates.append(torch.arange(start, len(flat), device="cpu"))
    return flat, candidates


def _document(entry: Any, position: int, name: str, fields: list[str], key: str) -> _Document:
    if isinstance(entry, str):
        return _Document(position, entry, {})
    if isinstance(entry, Mapping):
        return _Document(entry.get(key, position), " ".join(_texts(entry, name, fields)), entry)
    if isinstance(entry, tuple) and len(entry) == 2:
        number, text = entry
        if isinstance(text, str):
            return _Document(number, text, {})
        msg = f"{name} must be (id, text); the text is {type(text).__name__}"
        raise TypeError(msg)
    got = f"a tuple of {len(entry)}" if isinstance(entry, tuple) else type(entry).__name__
    hint = ": lists of candidates go with a list of queries" if isinstance(entry, list) else ""
    msg = f"{name} must be {_KINDS}; got {got}{hint}"
    raise TypeError(msg)


def _texts(entry: Mapping[str, Any], name: str, fields: list[str]) -> list[str]:
    for field in fields:
        if field not in entry:
            msg = f"{name} has no field {field!r}, which text= names; it has {', '.join(map(repr, entry)) or 'none'}"
            raise ValueError(msg)
        if not isinstance(entry[field], str):
            msg = f"{name}[{field!r}] must be a str; got {type(entry[field]).__name__}"
            raise TypeError(msg)
    return [entry[field] for field in fields]


def _result(document: _Document, score: float) -> dict[str, Any]:
    return {**document.fields, "id": document.id, "score": score, "text": document.text}


def _embedded(model: Any, texts: list[str], query: bool, normalize: bool, show_progress_bar: bool) -> PackedTokens:
    """Embed texts, each distinct text once. Equal texts share their rows."""
    numbers: dict[str, int] = {}
    order = [numbers.setdefault(text, len(numbers)) for text in texts]
    packed = encode(model, list(numbers), query=query, show_progress_bar=show_progress_bar)
    if normalize:
        _check_unit(packed)
    return packed if len(numbers) == len(order) else packed[order]


def _check_unit(packed: PackedTokens) -> None:
    norms = torch.linalg.vector_norm(packed.tokens.float(), dim=1)
    # A row of zeros is padding that counts in the maximum.
    wrong = ~(((norms - 1).abs() <= _UNIT.get(packed.dtype, 1e-3)) | (norms == 0))
    if bool(wrong.any()):
        norm = float(norms[wrong][0])
        msg = f"normalize=True needs a model whose embeddings are unit vectors; got one of norm {norm:.4g}"
        raise ValueError(msg)
