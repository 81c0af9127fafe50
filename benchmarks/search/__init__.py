"""Searching a whole collection: ours beside indexes and databases. `python -m benchmarks.search --help` says how.

Every contender builds and searches in processes of its own, one thread each, and is judged by the exact ranking.
"""

# Of the files of results.
SCHEMA = 2
