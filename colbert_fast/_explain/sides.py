"""One side of a score: a text, and the token that each row of its embedding stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

# "text": a token of the text. "marker": a token that the model adds, such as [CLS] or a prefix. "expansion": a token
# that fills a query up, such as [MASK]. "padding": a row of zeros after a short document.
Kind = Literal["text", "marker", "expansion", "padding"]
PADDING = "(padding)"
# How tokenizers mark a piece that continues a word, and a piece that begins a word.
_CONTINUES = "##"
_BEGINS = ("\u0120", "\u2581")


class Token(NamedTuple):
    """What one row of an embedding stands for."""

    string: str
    kind: Kind
    # Where the token is in the text of its side: text[start:end]. Only a token of the kind "text" has a place.
    start: int = 0
    end: int = 0
    # Whether the token continues the word of the token before it.
    continues: bool = False


class Side(NamedTuple):
    """A text and its tokens, one for each row of the embedding."""

    text: str
    tokens: tuple[Token, ...]
    # The model has read text[:read]. The rest was cut.
    read: int


class Tokens(NamedTuple):
    """How a model has cut a text into tokens."""

    ids: list[int]  # all tokens that passed through the transformer
    kept: list[bool]  # which of them have an embedding
    prompt: str  # what the model put before the text
    # What the tokenizer gives for prompt + text without any cut: "input_ids", and "offset_mapping" if it can.
    whole: Any
    tokenizer: Any


def side_of_tokens(text: str, tokens: Tokens) -> Side:
    """Name the rows of a text's embedding."""
    if tokens.whole.get("offset_mapping") is None:
        return _side_without_places(tokens)
    places = _places(text, tokens)
    named = []
    for number, (token, place, kept) in enumerate(zip(tokens.ids, places, tokens.kept, strict=True)):
        if not kept:
            continue
        if place is None:
            named.append(Token(_string(tokens.tokenizer, token), _added(tokens, number)))
        else:
            start, end, continues = place
            named.append(Token(text[start:end], "text", start, end, continues))
    return Side(text, tuple(named), _read(text, tokens, places))


def side_of_strings(strings: Sequence[str], kinds: Sequence[Kind] | None = None) -> Side:
    """Join tokens to a readable text.

    A token that begins with "##" continues a word. If some tokens begin with the signs of byte-level BPE or of
    SentencePiece for a new word, the other tokens continue a word. Otherwise every token is a word.
    """
    marked = any(string.startswith(_BEGINS) for string in strings)
    text, tokens = "", []
    for number, string in enumerate(strings):
        kind = kinds[number] if kinds is not None else "text"
        if kind != "text":
            tokens.append(Token(string, kind))
            continue
        plain = (string.lstrip("".join(_BEGINS)) if marked else string.removeprefix(_CONTINUES)) or string
        begins = string.startswith(_BEGINS) if marked else plain == string
        text += " " if begins and text else ""
        tokens.append(Token(plain, "text", len(text), len(text) + len(plain), bool(text) and not begins))
        text += plain
    return Side(text, tuple(tokens), len(text))


def with_padding(side: Side) -> Side:
    """Add the row of zeros that stands for all padding of a short document."""
    return side._replace(tokens=(*side.tokens, Token(PADDING, "padding")))


def _places(text: str, tokens: Tokens) -> list[tuple[int, int, bool] | None]:
    """Return where each token is in the text, and whether it continues a word; None for a token that is not there."""
    places: list[tuple[int, int, bool] | None] = [None] * len(tokens.ids)
    ids, offsets = tokens.whole["input_ids"], tokens.whole["offset_mapping"]
    words, shift = tokens.whole.word_ids(), len(tokens.prompt)
    begins = {start - shift for start, _ in offsets}
    for number, other in _matched(tokens.ids, ids):
        # The first token of the text may begin with the space at the end of the prompt.
        start, end = max(offsets[other][0] - shift, 0), offsets[other][1] - shift
        while start < end and text[start].isspace() and text[start:end].strip():
            start += 1
        if words[other] is not None and start < end <= len(text):
            # A tokenizer that removes accents leaves the marks after a letter out of every place.
            while end < len(text) and end not in begins and unicodedata.category(text[end]).startswith("M"):
                end += 1
            continues = start > 0 and not text[start - 1].isspace() and words[other - 1] == words[other]
            places[number] = start, end, continues
    return places


def _read(text: str, tokens: Tokens, places: list[tuple[int, int, bool] | None]) -> int:
    """Return how much of the text the model has read: all of it, unless its last token is not among the model's.

    After its last token a text may have characters that the tokenizer drops. These were read too.
    """
    read = max((place[1] for place in places if place is not None), default=0)
    ends = zip(tokens.whole["offset_mapping"], tokens.whole.word_ids(), strict=True)
    last = max((end - len(tokens.prompt) for (_, end), word in ends if word is not None), default=0)
    return len(text) if read >= last else read


def _matched(ids: list[int], whole: list[int]) -> list[tuple[int, int]]:
    """Pair the tokens of a model, as numbers, with the equal tokens that the tokenizer gives for the whole text.

    In most models the two differ only in tokens that the model adds, and in an end that is cut. One pass pairs these.
    Where it pairs less than half, as with a prompt that is unknown here, the longest common runs are paired.
    """
    pairs: list[tuple[int, int]] = []
    for number, token in enumerate(ids):
        if len(pairs) < len(whole) and token == whole[len(pairs)]:
            pairs.append((number, len(pairs)))
    if 2 * len(pairs) >= min(len(ids), len(whole)):
        return pairs
    blocks = SequenceMatcher(None, ids, whole, autojunk=False).get_matching_blocks()
    return [(first + step, other + step) for first, other, size in blocks for step in range(size)]


def _side_without_places(tokens: Tokens) -> Side:
    """Name rows by the tokenizer's own strings, for a tokenizer that does not say where a token is in its text."""
    strings: list[str] = []
    kinds: list[Kind] = []
    special = set(getattr(tokens.tokenizer, "all_special_ids", ()))
    for number, (token, kept) in enumerate(zip(tokens.ids, tokens.kept, strict=True)):
        if kept:
            strings.append(str(tokens.tokenizer.convert_ids_to_tokens(token)))
            kinds.append(_added(tokens, number) if token in special else "text")
    return side_of_strings(strings, kinds)


def _string(tokenizer: Any, token: int) -> str:
    """Return a token as a reader knows it: without the sign that begins a word."""
    string = str(tokenizer.convert_ids_to_tokens(token))
    return string.lstrip("".join(_BEGINS)) or string


def _added(tokens: Tokens, number: int) -> Kind:
    """Return the kind of a token that the model has added."""
    fill = {getattr(tokens.tokenizer, f"{name}_token_id", None) for name in ("mask", "pad")}
    return "expansion" if tokens.ids[number] in fill else "marker"
