"""Explanation.from_embeddings, and how an explanation is shown: as a table, as an HTML page and as figures."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import colbert_fast as cf

WORDS = ["the", "capital", "of", "Germany"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></span>",
    "\"quoted\" 'twice' &amp; &lt;",
    "{score}",
    "\u202eRTL override",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f680",
    "\x1b[31mred",
    "\x00",
    "\ud800",
    "line\nbreak",
    "javascript:alert(1)",
    "<img src=x onerror=alert(1)>",
    "$\\frac{$",
]


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(
        dtype
    )


def explanation(query: list[str], document: list[str], **options: Any) -> cf.Explanation:
    """The query's token i is answered by the document's token i, as far as there is one."""
    q, d = unit(len(query), 16), unit(len(document), 16)
    count = min(len(query), len(document))
    d[:count] = q[:count]
    return cf.Explanation.from_embeddings(q, d, query, document, **options)


class TestFromEmbeddings:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("mean", [False, True])
    def test_the_score_is_maxsim(self, dtype: torch.dtype, mean: bool) -> None:
        q, d = unit(5, 24, dtype=dtype), unit(9, 24, dtype=dtype)
        found = cf.Explanation.from_embeddings(q, d, list("abcde"), list("abcdefghi"), length_normalize=mean)
        assert found.score == float(cf.maxsim([q], [d], length_normalize=mean))
        assert sum(row.share for row in found.rows) == pytest.approx(found.score, rel=1e-5)
        exact = q.double() @ d.double().T
        assert [row.document_index for row in found.rows] == exact.argmax(1).tolist()
        assert found.similarities.dtype == (np.float64 if dtype == torch.float64 else np.float32)

    @pytest.mark.parametrize("place", [0, 5, 8])
    def test_a_planted_answer(self, place: int) -> None:
        q, d = unit(3, 16), unit(9, 16)
        d[place] = q[1]
        row = cf.Explanation.from_embeddings(q, d, list("abc")).rows[1]
        assert (row.query_token, row.document_index, row.document_token) == ("b", place, str(place))
        assert row.similarity == pytest.approx(1)

    def test_of_equal_answers_the_first_wins(self) -> None:
        q = unit(1, 300)
        d = q.repeat(200, 1)
        assert cf.Explanation.from_embeddings(q, d, ["a"]).rows[0].document_index == 0

    def test_negative_similarities(self) -> None:
        q = unit(2, 8)
        found = cf.Explanation.from_embeddings(q, -q.sum(0, keepdim=True), ["a", "b"], ["c"])
        assert all(row.share < 0 for row in found.rows) and found.score < 0
        assert "%" not in str(found)
        assert 'class="s0 minus"' in found.to_html()

    def test_arrays_and_lists(self) -> None:
        q, d = unit(2, 8), unit(3, 8)
        expected = cf.Explanation.from_embeddings(q, d, ["a", "b"]).to_dict()
        read_only = q.numpy().copy()
        read_only.flags.writeable = False
        for form in (read_only, q.tolist(), q.clone().requires_grad_()):
            assert cf.Explanation.from_embeddings(form, d, ["a", "b"]).to_dict() == expected

    def test_names_are_joined_to_a_text(self) -> None:
        texts = {
            "the embeddings": ["the", "embed", "##dings"],
            "the embeddings.": ["\u0120the", "\u0120embed", "dings", "."],
            "The embeddings": ["The", "\u2581embed", "dings"],
            "a ## b": ["a", "##", "b"],
        }
        for text, names in texts.items():
            found = explanation(names, names)
            assert found.query.text == text
            assert all(text[token.start : token.end] == token.string for token in found.query.tokens)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                (unit(2, 8), unit(3, 8), ["a"]),
                ValueError,
                "query_tokens must have one name for each of the 2 rows; got 1",
            ),
            (
                (unit(2, 8), unit(3, 8), "ab"),
                TypeError,
                "query_tokens must be a list of str, one for each row; got str",
            ),
            (
                (unit(2, 8), unit(3, 8), None),
                TypeError,
                "query_tokens must be a list of str, one for each row; got None",
            ),
            ((unit(2, 8), unit(3, 8), ["a", 2]), TypeError, r"query_tokens\[1\] is int"),
            (
                (unit(1, 2, 8), unit(3, 8), ["a"]),
                ValueError,
                r"query_embeddings must be \[length, dim\].* got \[1, 2, 8\]",
            ),
            ((unit(2, 8), unit(3, 9), ["a", "b"]), ValueError, r"need the same dim; got \[\*, 8\] and \[\*, 9\]"),
            ((unit(2, 8)[:0], unit(3, 8), []), ValueError, "the query must have at least one token"),
            ((unit(2, 8), unit(3, 8)[:0], ["a", "b"]), ValueError, "the document must have at least one token"),
            (("text", unit(3, 8), ["a", "b"]), TypeError, "query_embeddings must be a tensor"),
        ],
    )
    def test_errors(self, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            cf.Explanation.from_embeddings(*arguments)


def test_it_is_frozen() -> None:
    found = explanation(WORDS, WORDS)
    with pytest.raises(AttributeError):
        found.score = 0.0  # type: ignore[misc]
    assert repr(found) == "<Explanation: score 4.0000, 4 query tokens, 4 document tokens>"


def test_nan_is_no_crash() -> None:
    d = unit(3, 8)
    d[1] = math.nan
    found = cf.Explanation.from_embeddings(unit(2, 8), d, ["a", "b"])
    assert math.isnan(found.score)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["score"] is None
    assert "nan" in str(found) and "nan" in found.to_html()


class TestTable:
    def test_it_is_aligned(self) -> None:
        found = explanation(["a", "capital" * 9, "\u6771\u4eac"], ["x", "y", "z"])
        lines = str(found).splitlines()
        assert lines[0] == "score 3.0000: the sum of the best similarities of 3 query tokens"
        assert lines[2].split() == ["query", "answer", "at", "similarity", "share"]
        assert [line.split()[1:5] for line in lines[3:]] == [
            ["x", "0", "1.000", "33.3"],
            ["y", "1", "1.000", "33.3"],
            ["z", "2", "1.000", "33.3"],
        ]
        # One wide character takes two columns.
        wide = sum(ord(char) > 0x1100 and char not in "\u2026\u2588" for char in lines[5])
        assert wide == 2
        assert lines[3].index(" x ") == lines[4].index(" y ") == lines[5].index(" z ") + wide
        assert "capital" * 3 in lines[4] and "capital" * 4 not in lines[4]

    def test_an_encoding_without_the_signs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = explanation(["caf\u00e9", "x" * 99], ["caf\u00e9", "y"])
        assert "\u2588" in str(found) and "\u2026" in str(found) and "caf\u00e9" in str(found)

        class Terminal:
            encoding: str | None = "ascii"

        monkeypatch.setattr(sys, "stdout", Terminal())
        plain = str(found)
        assert plain.isascii() and "####" in plain and "xxx..." in plain and "caf\\xe9" in plain
        for encoding in (None, "no such encoding"):
            Terminal.encoding = encoding
            assert "caf" in str(found)

    def test_nothing_reaches_the_terminal_that_moves_its_cursor(self) -> None:
        shown = str(explanation(HOSTILE, HOSTILE))
        assert all(char.isprintable() or char in "\n\u200d" for char in shown)
        assert len(shown.splitlines()) == 3 + len(HOSTILE)
        shown.encode()

    def test_a_long_document(self) -> None:
        document = [f"word{i}" for i in range(10_000)]
        found = explanation(WORDS, document)
        assert len(str(found)) < 1000
        page = found.to_html()
        assert len(page) < 200_000 and "word9999" in page
        assert page.count("data-to=") == 2 * len(WORDS)


class Reader(HTMLParser):
    """Collects the tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.texts[tag] = self.texts.get(tag, "") + data


class TestPage:
    def test_every_string_of_a_caller_is_text(self) -> None:
        plain = Reader(explanation(["word"] * len(HOSTILE), ["word"] * len(HOSTILE)).to_html())
        found = explanation(HOSTILE, HOSTILE)
        page = Reader(found.to_html())
        assert not page.open
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
        assert [sorted(attributes) for _, attributes in page.tags] == [sorted(a) for _, a in plain.tags]
        for name in ("script", "style"):
            assert page.texts[name] == plain.texts[name]
        for string in HOSTILE[:4]:
            assert string in page.texts["span"]
        # Characters that would reorder the text after them are shown by their names.
        assert "\\u202eRTL override" in page.texts["span"] and "\\x1b[31mred" in page.texts["span"]
        assert not {"\u202e", "\x1b", "\x00", "\ud800"} & set(found.to_html())
        assert "alert(1)" in page.texts["title"]

    def test_a_hostile_model_token_is_text(self) -> None:
        found = explanation(WORDS, WORDS)
        marker = found.query.tokens[0]._replace(string="<script>alert(1)</script>", kind="marker")
        side = found.query._replace(tokens=(marker, *found.query.tokens[1:]))
        page = cf.Explanation(side, side, found.similarities, found.score, False).to_html()
        assert page.count("<script>") == 1 and "&lt;script&gt;alert(1)" in page

    def test_it_reads_nothing_else(self) -> None:
        page = explanation(WORDS, WORDS).to_html()
        assert not re.search(r"https?:|//|url\(|@import|src=|href=|<link|fetch|XMLHttp", page)
        assert "default-src 'none'" in page and "unsafe" not in page

    def test_elements_name_each_other(self) -> None:
        q = unit(3, 16)
        d = torch.cat([unit(2, 16), q[:2], unit(1, 16)])
        q[2] = q[1]
        found = cf.Explanation.from_embeddings(q, d, ["a", "b", "c"], ["v", "w", "x", "y", "z"])
        spans = [attributes for tag, attributes in Reader(found.to_html()).tags if "data-to" in attributes]
        links = {span["id"]: span["data-to"] for span in spans}
        assert links == {"q0": "d0", "q1": "d1", "q2": "d1", "d0": "q0", "d1": "q1 q2"}
        assert all(span["tabindex"] == "0" and span["role"] == "button" for span in spans)
        assert [span["title"] for span in spans][-1] == (
            "b \u2192 y: similarity 1.000, share 33.3 %; c \u2192 y: similarity 1.000, share 33.3 %"
        )

    def test_the_text_is_whole(self) -> None:
        query, document = ["What", "?"], ["Berlin", "##er", "is", "\n", "a", "  ", "word"]
        found = explanation(query, document)
        assert (found.query.text, found.document.text) == ("What ?", "Berliner is \n a    word")
        shown = re.findall(r'<p class="text" dir="auto">(.*?)</p>', found.to_html(), re.DOTALL)
        assert [re.sub(r"<[^>]*>", "", text) for text in shown] == [found.query.text, found.document.text]

    def test_save(self, tmp_path: Path) -> None:
        found = explanation(HOSTILE, HOSTILE)
        found.save_html(tmp_path / "page.html")
        assert (tmp_path / "page.html").read_bytes().decode() == found.to_html()


@pytest.mark.needs("plot")
class TestFigures:
    @pytest.fixture(autouse=True)
    def closed(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        import matplotlib

        matplotlib.use("Agg")
        yield
        import matplotlib.pyplot as plt

        plt.close("all")

    def test_the_answers_are_marked(self) -> None:
        found = explanation(WORDS, [*WORDS, "more"])
        figure, axes = found.plot()
        np.testing.assert_array_equal(axes.images[0].get_array(), found.similarities)
        assert axes.collections[0].get_offsets().tolist() == [[i, i] for i in range(4)]
        assert [label.get_text() for label in axes.get_xticklabels()] == [*WORDS, "more"]
        assert [label.get_text() for label in axes.get_yticklabels()] == WORDS
        figure.canvas.draw()

    def test_names_are_no_formulas(self) -> None:
        names = ["$\\frac{$", "$x$", "a" * 99]
        figure, axes = explanation(names, names).plot()
        figure.canvas.draw()
        assert max(len(label.get_text()) for label in axes.get_xticklabels()) <= 24

    def test_a_long_document_names_the_answers(self) -> None:
        _, axes = explanation(WORDS, [f"w{i}" for i in range(3000)]).plot()
        assert [label.get_text() for label in axes.get_xticklabels()] == ["w0", "w1", "w2", "w3"]

    @pytest.mark.parametrize("place", [0, 7, 23])
    def test_a_planted_patch_is_outlined(self, place: int) -> None:
        q, d = unit(3, 16), unit(24, 16)
        d[place] = q[1]
        found = cf.Explanation.from_embeddings(q, d, ["total", "revenue", "of"])
        figure, axes = found.plot_image(np.zeros((80, 120, 3), np.uint8), (6, 4), query_token=1)
        (outline,) = axes.patches
        assert outline.get_xy() == (20 * (place % 6), 20 * (place // 6))
        assert (outline.get_width(), outline.get_height()) == (20, 20)
        heat = axes.images[1].get_array()
        assert np.unravel_index(heat.argmax(), heat.shape) == (place // 6, place % 6)
        figure.canvas.draw()
        _, whole = found.plot_image(np.zeros((80, 120)), (6, 4))
        np.testing.assert_allclose(whole.images[1].get_array().ravel(), found.similarities.mean(0), rtol=1e-6)
        assert len(whole.patches) == len({row.document_index for row in found.rows})

    def test_rows_that_are_no_patches(self, tmp_path: Path) -> None:
        import matplotlib.pyplot as plt

        q, patches = unit(2, 16), unit(6, 16)
        patches[4] = q[0]
        d = torch.cat([q[1:], patches, unit(1, 16)])
        mask = torch.tensor([False, *[True] * 6, False])
        found = cf.Explanation.from_embeddings(q, d, ["a", "b"])
        plt.imsave(tmp_path / "page.png", np.zeros((20, 30, 3)))
        _, axes = plt.subplots()
        assert found.plot_image(tmp_path / "page.png", (3, 2), image_mask=mask, axes=axes)[1] is axes
        # The second token is answered by a row that is no patch.
        assert [outline.get_xy() for outline in axes.patches] == [(10, 10)]

    @pytest.mark.parametrize("shape", [(3000, 1, 3), (1, 3000, 3), (1, 1), (3, 3)])
    def test_an_image_of_any_shape(self, shape: tuple[int, ...]) -> None:
        figure, _ = cf.Explanation.from_embeddings(unit(1, 8), unit(35, 8), ["a"]).plot_image(np.zeros(shape), (7, 5))
        width, height = figure.get_size_inches()
        assert width == 7 and 2 <= height <= 21
        figure.canvas.draw()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK", "YCbCr", "HSV"])
    def test_the_colours_of_an_image(self, tmp_path: Path, mode: str) -> None:
        from PIL import Image

        image = Image.new("RGB", (4, 3), (250, 120, 10)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        shown = [image]
        if mode in ("RGB", "RGBA", "P", "LA"):
            image.save(tmp_path / "page.png")
            shown.append(tmp_path / "page.png")
        for one in shown:
            _, axes = cf.Explanation.from_embeddings(unit(1, 8), unit(6, 8), ["a"]).plot_image(one, (3, 2))
            np.testing.assert_array_equal(axes.images[0].get_array()[..., :3], expected)

    def test_a_page_of_16_bits_is_grey(self, tmp_path: Path) -> None:
        from PIL import Image

        Image.fromarray(np.arange(0, 60000, 5000, dtype=np.uint16).reshape(3, 4)).save(tmp_path / "page.png")
        found = cf.Explanation.from_embeddings(unit(1, 8), unit(6, 8), ["a"])
        _, axes = found.plot_image(tmp_path / "page.png", (3, 2))
        assert axes.images[0].get_array().max() == 55000

    def test_similarities_that_are_not_finite(self) -> None:
        d = unit(6, 8)
        d[1], d[2], d[4] = math.inf, -math.inf, math.nan
        figure, axes = cf.Explanation.from_embeddings(unit(2, 8), d, ["a", "b"]).plot_image(np.zeros((8, 8)), (3, 2))
        figure.canvas.draw()
        assert axes.images[1].get_alpha().min() == 0 and axes.images[1].get_alpha().max() == pytest.approx(0.6)

    @pytest.mark.parametrize("axes", [3, np.array([None])], ids=["number", "array"])
    def test_axes_of_another_kind(self, axes: Any) -> None:
        with pytest.raises(TypeError, match="axes must be one Axes of matplotlib"):
            explanation(WORDS, WORDS).plot(axes=axes)

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((np.zeros((8, 8)), (2, 2)), {}, ValueError, "n_patches must multiply to .* got 4 for 6 rows"),
            ((np.zeros((8, 8)), 6), {}, ValueError, r"n_patches must be \(columns, rows\)"),
            ((np.zeros((8, 8)), (3, 0)), {}, ValueError, r"n_patches\[1\] must be 1 or more"),
            ((np.zeros(8), (3, 2)), {}, ValueError, "image must be a path, a PIL image or an array"),
            ((None, (3, 2)), {}, ValueError, "image must be a path, a PIL image or an array"),
            ((np.zeros((0, 8)), (3, 2)), {}, ValueError, "image must have pixels"),
            ((np.zeros((8, 8)), (3, 2)), {"query_token": 1}, ValueError, "query_token must be below 1"),
            ((np.zeros((8, 8)), (3, 2)), {"query_token": "a"}, TypeError, "query_token must be an int"),
            ((np.zeros((8, 8)), (3, 2)), {"image_mask": [True]}, ValueError, r"image_mask must be \[6\]"),
        ],
    )
    def test_errors(self, arguments: Any, options: Any, error: type[Exception], message: str) -> None:
        found = cf.Explanation.from_embeddings(unit(1, 8), unit(6, 8), ["a"])
        with pytest.raises(error, match=message):
            found.plot_image(*arguments, **options)


def test_a_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "colbert_fast._explain.figures", raising=False)
    with pytest.raises(ImportError, match=r"matplotlib>=3.8 .*: pip install 'colbert-fast\[plot\]'"):
        explanation(WORDS, WORDS).plot()
