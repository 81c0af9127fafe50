"""Collections: documents on disk, appendable, searched exactly from compressed codes."""

from colbert_fast.collection.collection import Collection

__all__ = ["Collection"]


def __dir__() -> list[str]:
    return sorted(__all__)
