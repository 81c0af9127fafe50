"""Collections with judgements in neural-cherche's form: load them, and make training triples of them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from colbert_fast.utils.beir import read_beir
from colbert_fast.utils.documents import checked_fields, checked_list, texts_by_key
from colbert_fast.utils.judgements import Judgements, checked_judgements

_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
# Where neural-cherche downloads to.
_DOWNLOADS = "evaluation_datasets"


def load_beir(
    dataset_name: str | os.PathLike[str], split: str = "test"
) -> tuple[list[dict[str, str]], list[str], dict[str, dict[str, int]]]:
    """Load a collection of BEIR: documents, queries and judgements.

    Parameters
    ----------
    dataset_name
        A folder that holds corpus.jsonl, queries.jsonl and qrels/{split}.tsv: it is read without the network. Or the
        name of a collection, such as "scifact": the library `beir` downloads it into `./evaluation_datasets`, unless it
        is there, as neural-cherche does.
    split
        Which judgements are read.

    Returns
    -------
    documents : list of dict
        ``{"id", "title", "text"}`` for each document.
    queries : list of str
        The texts of the judged queries, without repetition.
    qrels : dict
        For each query, by its text: the judgement of each judged document, by the document's id. Queries with equal
        texts share their judgements.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_beir`.
    ImportError
        There is no such folder, and the library `beir` is not installed.
    """
    documents, texts, judgements = read_beir(_folder_of(dataset_name), split)
    qrels: dict[str, dict[str, int]] = {}
    for query, judged in judgements.items():
        qrels.setdefault(texts[query], {}).update(judged)
    return documents, list(qrels), qrels


def _folder_of(name: str | os.PathLike[str]) -> Path:
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        msg = f"dataset_name must be a folder or the name of a collection; got {name!r}"
        raise TypeError(msg)
    for folder in (Path(name), Path(_DOWNLOADS) / name):
        if folder.is_dir():
            return folder
    if isinstance(name, os.PathLike) or len(Path(name).parts) > 1:
        msg = f"the folder {os.fspath(name)} does not exist"
        raise FileNotFoundError(msg)
    if find_spec("beir") is None:
        msg = (
            f"there is no folder {name!r}, and the library that downloads a collection by its name is not installed: "
            f"pip install beir; or unpack {_URL.format(name=name)} and give its folder"
        )
        raise ImportError(msg)
    from beir import util  # type: ignore[import-not-found]

    return Path(util.download_and_unzip(_URL.format(name=name), _DOWNLOADS))


def get_beir_triples(
    key: str,
    on: str | Sequence[str],
    documents: Iterable[Mapping[str, Any]],
    queries: Iterable[str],
    qrels: Judgements,
) -> list[tuple[str, str, str]]:
    """Make training triples: a query, a document that answers it, and a random other document.

    `random.seed(n)` makes the triples repeatable. Three things differ from neural-cherche: a positive has a judgement
    above 0, a negative is never a positive of its query, and `queries` may have another order than `qrels`.

    Parameters
    ----------
    key, on
        The field that identifies a document, and the field or fields of its text, joined by spaces.
    documents
        Dicts with these fields.
    queries
        Queries. A query without judgements has no triples.
    qrels
        The judgements of each query, by its text, as :func:`load_beir` gives them.

    Returns
    -------
    list of tuple
        (query, positive, negative), one triple for each positive.

    Raises
    ------
    TypeError, ValueError
        A field is missing or not a str; a judgement is no integer; a positive is not among the documents; or all
        documents are positives.
    """
    key, fields = checked_fields(key, on)
    texts = texts_by_key(documents, key, fields)
    names = list(texts)
    judgements = checked_judgements(qrels)
    triples = []
    for query in checked_list("queries", queries, str, "str"):
        positives = {name for name, judgement in judgements.get(query, {}).items() if judgement > 0}
        if unknown := positives - texts.keys():
            msg = (
                f"the query {query!r} is answered by the document {min(unknown, key=str)!r}, which is not in documents"
            )
            raise ValueError(msg)
        if positives and len(positives) == len(names):
            msg = f"every document answers the query {query!r}, so that no document can be its negative"
            raise ValueError(msg)
        for name in judgements.get(query, {}):
            if name in positives:
                triples.append((query, texts[name], texts[_drawn(names, positives)]))
    return triples


def _drawn(names: list[Any], without: set[Any]) -> Any:
    while True:
        name = random.choice(names)
        if name not in without:
            return name
