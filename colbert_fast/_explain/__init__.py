"""Why a document has its score: which document token answered each query token.

`model_tokens` asks a model for the tokens and the embeddings of two texts, and `explanation` holds the result. `sides`
names the rows of an embedding by the tokens of its text. `table`, `page` and `figures` show the result in a terminal,
as HTML and with matplotlib, and `words` holds what they say alike.
"""

from colbert_fast._explain.explanation import Explanation
from colbert_fast._explain.model_tokens import explain

__all__ = ["Explanation", "explain"]
