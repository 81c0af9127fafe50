"""The result of `explain`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from colbert_fast._arrays import float_tensor
from colbert_fast._explain.sides import Kind, Side, side_of_strings
from colbert_fast._forks import safe_after_fork
from colbert_fast._maxsim import maxsim
from colbert_fast.packed import PackedTokens


class Row(NamedTuple):
    """One query token and the document token that answered it."""

    query_index: int
    query_token: str
    query_kind: Kind
    document_index: int
    document_token: str
    document_kind: Kind
    similarity: float
    # What this query token adds to the score.
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Which document token answered each query token, and what each answer adds to the score.

    `print(explanation)` shows a table. In the table, `##` begins a token that continues the word before it.

    Attributes
    ----------
    query, document
        The texts, each with its tokens: `query.text`, and `query.tokens[i].string` for row i of the embedding.
    similarities
        Read-only numpy array [query tokens, document tokens]: the similarity of every pair of tokens. float32, or
        float64 if an embedding is float64.
    score
        MaxSim, as `colbert_fast.maxsim` computes it.
    mean
        Whether the score is divided by the number of query tokens, as in MeanMaxSim.
    """

    query: Side
    document: Side
    similarities: np.ndarray[Any, Any]
    score: float
    mean: bool

    @classmethod
    @safe_after_fork
    def from_embeddings(
        cls,
        query_embeddings: Any,
        document_embeddings: Any,
        query_tokens: Sequence[str],
        document_tokens: Sequence[str] | None = None,
        *,
        length_normalize: bool = False,
    ) -> Explanation:
        """Explain a score from embeddings that any encoder has made.

        Parameters
        ----------
        query_embeddings, document_embeddings
            Tensors or arrays [length, dim] of one query and one document. Every row is a token.
        query_tokens, document_tokens
            The name of each row. "##" at the beginning of a name joins it to the name before. Without
            `document_tokens` a row has its number as its name, as for the patches of an image.
        length_normalize
            Divide the score by the number of query tokens, as in MeanMaxSim.

        Returns
        -------
        Explanation
            Its rows have the kind "text".

        Raises
        ------
        TypeError
            Embeddings of an unknown kind or dtype, or tokens that are not a list of str.
        ValueError
            Embeddings that are not [length, dim], have no rows or differ in dim; or not one name for each row.
        """
        q = _checked_rows("query_embeddings", query_embeddings)
        d = _checked_rows("document_embeddings", document_embeddings)
        if document_tokens is None:
            document_tokens = [str(number) for number in range(len(d))]
        query = side_of_strings(_checked_tokens("query_tokens", query_tokens, len(q)))
        document = side_of_strings(_checked_tokens("document_tokens", document_tokens, len(d)))
        return explained(query, document, q, d, mean=length_normalize)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One named tuple for each query token, in the order of the query.

        Its fields are `query_index`, `query_token` and `query_kind`; `document_index`, `document_token` and
        `document_kind` of the answer; their `similarity`; and the `share`, which is what the query token adds to the
        score. The shares of all rows sum to the score. The indices are rows of the embeddings. A kind is "text",
        "marker" (a token that the model adds), "expansion" (a token of query expansion) or "padding".
        """
        winners = self.similarities.argmax(axis=1)
        divisor = len(self.query.tokens) if self.mean else 1
        rows = []
        for number, (winner, token) in enumerate(zip(winners.tolist(), self.query.tokens, strict=True)):
            answer = self.document.tokens[winner]
            similarity = float(self.similarities[number, winner])
            rows.append(
                Row(
                    number,
                    token.string,
                    token.kind,
                    winner,
                    answer.string,
                    answer.kind,
                    similarity,
                    similarity / divisor,
                )
            )
        return tuple(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as data that `json.dumps` takes. A number that is not finite becomes None.

        Returns
        -------
        dict
            "query", "document": the texts. "score": the score. "mean": whether it is MeanMaxSim. "rows": a list of
            dicts with the fields of `rows`.
        """
        rows = []
        for row in self.rows:
            record = row._asdict()
            for name in ("similarity", "share"):
                record[name] = _finite(record[name])
            rows.append(record)
        return {
            "query": self.query.text,
            "document": self.document.text,
            "score": _finite(self.score),
            "mean": self.mean,
            "rows": rows,
        }

    def __str__(self) -> str:
        from colbert_fast._explain.table import table

        return table(self, getattr(sys.stdout, "encoding", None) or "utf-8")

    def __repr__(self) -> str:
        counts = f"{len(self.query.tokens)} query tokens, {len(self.document.tokens)} document tokens"
        return f"<Explanation: score {self.score:.4f}, {counts}>"

    def to_html(self) -> str:
        """Return one HTML page that needs no other file and no network.

        The page shows both texts. Point at a query word, tap it or move to it with the keyboard, and its answer lights
        up.
        """
        from colbert_fast._explain.page import page

        return page(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page of `to_html` to a file in UTF-8. A file that is there already is replaced.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        page = self.to_html()
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the similarities of all pairs of tokens with matplotlib, and mark the answers.

        Parameters
        ----------
        axes
            Axes of matplotlib to draw into. None: a new figure.

        Returns
        -------
        figure, axes
            What matplotlib made: `figure.savefig("tokens.png")`, for example.

        Raises
        ------
        ImportError
            matplotlib is not installed. The extra `plot` brings it.
        """
        from colbert_fast._explain.figures import matrix

        return matrix(self, axes)

    def plot_image(
        self,
        image: Any,
        n_patches: tuple[int, int],
        *,
        query_token: int | None = None,
        image_mask: Any = None,
        axes: Any = None,
    ) -> tuple[Any, Any]:
        """Draw the similarities of an image's patches over the image, and outline the patches that answer.

        This is for a document that is an image, as for ColPali: the rows of its embedding are patches, from left to
        right and from top to bottom.

        Parameters
        ----------
        image
            The path of an image, an image of PIL, or an array [height, width] or [height, width, 3 or 4].
        n_patches
            The number of columns and the number of rows of patches.
        query_token
            The number of a query token: its similarity with each patch. None: the mean over the tokens of the query's
            text.
        image_mask
            bool [document tokens]: which rows of the embedding are patches. None: all.
        axes
            Axes of matplotlib to draw into. None: a new figure.

        Returns
        -------
        figure, axes
            What matplotlib made.

        Raises
        ------
        ImportError
            matplotlib is not installed. The extra `plot` brings it.
        ValueError
            `n_patches` does not multiply to the number of patches, the query has no such token, or the image has
            another shape.
        """
        from colbert_fast._explain.figures import patches

        return patches(self, image, n_patches, query_token, image_mask, axes)


def explained(query: Side, document: Side, query_rows: Tensor, document_rows: Tensor, *, mean: bool) -> Explanation:
    """Explain the score of two embeddings [length, dim] whose rows stand for the tokens of the sides."""
    for name, rows in (("query", query_rows), ("document", document_rows)):
        if not len(rows):
            msg = f"the {name} must have at least one token with an embedding; it has none"
            raise ValueError(msg)
    q, d = query_rows.detach(), document_rows.detach()
    if q.shape[1] != d.shape[1]:
        msg = f"query and document need the same dim; got [*, {q.shape[1]}] and [*, {d.shape[1]}]"
        raise ValueError(msg)
    score = maxsim(PackedTokens.from_list([q]), PackedTokens.from_list([d]), length_normalize=mean)
    # The matrix is computed in float64 and then rounded, so that equal document tokens have equal similarities, and
    # the first of them wins, as in the score.
    similarities = (q.cpu().double() @ d.cpu().double().T).to(score.dtype).numpy()
    similarities.flags.writeable = False
    return Explanation(query, document, similarities, float(score), mean)


def _checked_rows(name: str, rows: Any) -> Tensor:
    tensor = float_tensor(rows, name)
    if tensor.ndim != 2:
        msg = f"{name} must be [length, dim], the embeddings of one text; got {list(tensor.shape)}"
        raise ValueError(msg)
    return tensor


def _checked_tokens(name: str, tokens: Any, rows: int) -> list[str]:
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
        msg = f"{name} must be a list of str, one for each row; got {type(tokens).__name__}"
        raise TypeError(msg)
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            msg = f"{name} must be a list of str; {name}[{number}] is {type(token).__name__}"
            raise TypeError(msg)
    if len(tokens) != rows:
        msg = f"{name} must have one name for each of the {rows} rows; got {len(tokens)}"
        raise ValueError(msg)
    return list(tokens)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
