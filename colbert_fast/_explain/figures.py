"""An explanation as a figure of matplotlib."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from colbert_fast._explain.words import formula, readable, shortened
from colbert_fast._extras import need
from colbert_fast._integers import not_negative_int, positive_int

if TYPE_CHECKING:
    from colbert_fast._explain.explanation import Explanation

need("the figure of an explanation", "plot", {"matplotlib": "3.8"})

# With more document tokens than this, only the tokens that answer are named.
_NAMED = 80
# The longest name of a token, in characters.
_NAME = 24
_INCHES_A_TOKEN = 0.22
# The width of a figure with an image, and its smallest and largest height, in inches. An image that is far higher or
# far wider than this does not fill its figure.
_WIDTH, _HEIGHTS = 7.0, (2.0, 21.0)
_COLOURS, _HEAT, _MARK = "viridis", "YlOrRd", "#ff3b30"
_OUTLINE = "#0a58ca"
# Modes of PIL whose numbers are not grey or red, green and blue.
_CONVERTED = ("P", "PA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "RGBa")


def matrix(explanation: Explanation, axes: Any = None) -> tuple[Any, Any]:
    """Draw the similarity of every query token with every document token, and mark the answers."""
    count, width = explanation.similarities.shape
    figure, axes = _figure(axes, (3 + _INCHES_A_TOKEN * min(width, 2 * _NAMED), 2 + _INCHES_A_TOKEN * min(count, 80)))
    shown = axes.imshow(explanation.similarities, aspect="auto", cmap=_COLOURS, interpolation="nearest")
    winners = [row.document_index for row in explanation.rows]
    axes.scatter(winners, range(count), marker="s", s=60, facecolors="none", edgecolors=_MARK, linewidths=1.5)
    named = range(width) if width <= _NAMED else sorted(set(winners))
    # A token such as "$x$" is text, and no formula.
    style = {"parse_math": False, "fontsize": 8}
    axes.set_xticks(list(named), [_name(explanation.document.tokens[i].string) for i in named], rotation=90, **style)
    axes.set_yticks(range(count), [_name(token.string) for token in explanation.query.tokens], **style)
    axes.set_xlabel("document")
    axes.set_ylabel("query")
    axes.set_title(f"score {explanation.score:.4f}: {formula(explanation)}", fontsize=10)
    figure.colorbar(shown, ax=axes, label="similarity")
    return figure, axes


def patches(
    explanation: Explanation,
    image: Any,
    n_patches: tuple[int, int],
    query_token: int | None,
    image_mask: Any,
    axes: Any,
) -> tuple[Any, Any]:
    """Draw the similarity of each patch over the image, and outline the patches that answer."""
    pixels = _pixels(image)
    columns, lines = _grid(n_patches)
    rows = _patch_rows(explanation, columns * lines, image_mask)
    if query_token is None:
        chosen = [i for i, token in enumerate(explanation.query.tokens) if token.kind == "text"]
        title = f"score {explanation.score:.4f}, colour: mean similarity of {len(chosen)} query tokens"
    else:
        chosen = [_checked_number(query_token, len(explanation.query.tokens))]
        row = explanation.rows[chosen[0]]
        title = f"{_name(row.query_token)}: similarity {row.similarity:.3f}"
    with np.errstate(invalid="ignore"):  # the mean of inf and -inf is NaN
        heat = explanation.similarities[np.ix_(chosen, rows)].astype(np.float64).mean(axis=0).reshape(lines, columns)
    height = _WIDTH * pixels.shape[0] / pixels.shape[1] + 0.5
    figure, axes = _figure(axes, (_WIDTH, min(max(height, _HEIGHTS[0]), _HEIGHTS[1])))
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    axes.imshow(pixels, cmap="gray", extent=extent)
    shown = axes.imshow(heat, cmap=_HEAT, alpha=_opacity(heat), extent=extent, interpolation="nearest")
    patch_of = {row: patch for patch, row in enumerate(rows)}
    size = pixels.shape[1] / columns, pixels.shape[0] / lines
    for winner in sorted({explanation.rows[i].document_index for i in chosen} & set(patch_of)):
        line, column = divmod(patch_of[winner], columns)
        axes.add_patch(_outline((column * size[0], line * size[1]), *size))
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.colorbar(shown, ax=axes, label="similarity", shrink=0.8)
    return figure, axes


def _opacity(heat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return 0 to 0.6: where the similarity is low, the page stays readable."""
    finite = heat[np.isfinite(heat)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    opacity: np.ndarray[Any, Any] = 0.6 * np.nan_to_num((heat - low) / (high - low if high > low else 1)).clip(0, 1)
    return opacity


def _outline(corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor=_OUTLINE, linewidth=2)


def _figure(axes: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    if axes is not None:
        if not hasattr(axes, "imshow"):
            msg = f"axes must be one Axes of matplotlib; got {type(axes).__name__}"
            raise TypeError(msg)
        return axes.figure, axes
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")


def _pixels(image: Any) -> np.ndarray[Any, Any]:
    """Return an image as an array [height, width] or [height, width, 3 or 4]."""
    if isinstance(image, (str, os.PathLike)):
        from PIL import Image

        with Image.open(image) as opened:
            image = opened.copy()
    if getattr(image, "mode", None) in _CONVERTED:
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype == object or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        msg = (
            "image must be a path, a PIL image or an array [height, width] or [height, width, 3 or 4]; got "
            f"{type(image).__name__} {list(pixels.shape)}"
        )
        raise ValueError(msg)
    if not pixels.size:
        msg = f"image must have pixels; got {list(pixels.shape)}"
        raise ValueError(msg)
    return pixels


def _grid(n_patches: Any) -> tuple[int, int]:
    if not isinstance(n_patches, (tuple, list)) or len(n_patches) != 2:
        msg = f"n_patches must be (columns, rows), two ints; got {n_patches!r}"
        raise ValueError(msg)
    return positive_int(n_patches[0], "n_patches[0]"), positive_int(n_patches[1], "n_patches[1]")


def _checked_number(query_token: int, count: int) -> int:
    number = not_negative_int(query_token, "query_token")
    if number >= count:
        msg = f"query_token must be below {count}, the number of query tokens; got {number}"
        raise ValueError(msg)
    return number


def _patch_rows(explanation: Explanation, count: int, image_mask: Any) -> list[int]:
    """Return the rows of the document's embedding that are patches, in the order of the patches."""
    total = len(explanation.document.tokens)
    mask = np.ones(total, dtype=bool) if image_mask is None else torch.as_tensor(image_mask).cpu().numpy()
    if mask.shape != (total,):
        msg = f"image_mask must be [{total}], one entry for each row of the document; got {list(mask.shape)}"
        raise ValueError(msg)
    rows: list[int] = mask.astype(bool).nonzero()[0].tolist()
    if len(rows) != count:
        msg = (
            f"n_patches must multiply to the number of the document's patches; got {count} for {len(rows)} rows: "
            "image_mask names the rows that are patches"
        )
        raise ValueError(msg)
    return rows


def _name(string: str) -> str:
    return shortened(readable(string), _NAME)
