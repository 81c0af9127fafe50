"""The late-interaction encoder `ColBERT`. It needs the extra `models`: `pip install 'colbert-fast[models]'`.

Importing this package checks at once that the libraries of the extra are installed and new enough. `ColBERT` itself is
imported on first use, because transformers takes seconds to import and scoring embeddings does not need it.

Which file does what:

- The class that users see: `colbert`; `given_arguments` notes which arguments a caller gave.
- Load: `checkpoint` chooses the kind of checkpoint and loads it; `keywords` sorts the keyword arguments for it;
  `load_request` holds what the user asked for; `files` finds a file in a folder or on the hub; `projection` reads a
  linear layer; `settings` checks lengths, prefixes and padding; `load_report` keeps transformers quiet and catches its
  report on the weights.
- Refuse what is damaged: `file_checks` looks at single files, `checkpoint_checks` at files and weights together.
- Run the transformer with another library than torch: `runtimes`.
- Embed: `texts` checks and pairs texts; `tokens` tokenizes texts and makes batches; `embedding` passes the batches
  through the encoder, `workers` in several processes; `capacity` says how many tokens a transformer can take.
- Train: `freezing` freezes all but the last layers of a transformer.
- Save: `saving` writes a checkpoint; `folders` puts a new folder in the place of an old one in one step;
  `folder_contents` links and removes what a folder holds; `staging` names and locks the hidden folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from colbert_fast._absent import no_attribute
from colbert_fast._extras import need

if TYPE_CHECKING:
    from colbert_fast.models.colbert import ColBERT

__all__ = ["NEURAL_CHERCHE_1_4_3", "ColBERT"]


class _Lengths(TypedDict):
    """Arguments of ColBERT."""

    max_length_query: int
    max_length_document: int


# The defaults of ColBERT are the lengths that neural-cherche's documentation shows, 32 and 350. The release 1.4.3 has
# other defaults, which are these: `ColBERT(name, **NEURAL_CHERCHE_1_4_3)`.
NEURAL_CHERCHE_1_4_3: _Lengths = {"max_length_query": 64, "max_length_document": 256}

# The packages that the extra `models` of pyproject.toml asks for, each with the oldest release that works.
_NEEDED = {"huggingface-hub": "1.3", "sentence-transformers": "6", "tqdm": "4.64", "transformers": "5.1"}


# Type checkers do not see it: every misspelt name would have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "ColBERT":
            from colbert_fast.models.colbert import ColBERT

            return ColBERT
        raise no_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


need("colbert_fast.models", "models", _NEEDED)
