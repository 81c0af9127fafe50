"""Why a document has its score: which document token answered each query token.

`explanation` holds the result, and `explain` makes it from a model and two texts. `sides` names the rows of an
embedding by the tokens of its text. `table`, `page` and `figures` show the result in a terminal, as HTML and with
matplotlib.
"""

from colbert_fast._explain.explain import explain
from colbert_fast._explain.explanation import Explanation

__all__ = ["Explanation", "explain"]
