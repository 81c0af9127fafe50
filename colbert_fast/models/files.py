"""The files of a checkpoint, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)


class Files:
    """The files of a checkpoint, in a folder or on the hub."""

    def __init__(self, source: str, kwargs: dict[str, Any]) -> None:
        self.source = source
        self.is_local = os.path.isdir(source)
        looks_like_path = os.path.isabs(source) or source.startswith((".", "~")) or source.count("/") > 1
        if not self.is_local and (looks_like_path or os.path.exists(source)):
            msg = f"model_name_or_path must be a folder or a repository of the hub; no folder {source!r}"
            raise FileNotFoundError(msg)
        self._cache: dict[str, Any] = {
            "cache_dir": kwargs.get("cache_folder"),
            "revision": kwargs.get("revision"),
        }
        self._access: dict[str, Any] = {
            "token": kwargs.get("token"),
            "local_files_only": kwargs.get("local_files_only", False),
        }

    def find(self, name: str) -> str | None:
        """Path of a file, downloaded if need be, or None where the checkpoint does not have it."""
        if self.is_local:
            path = os.path.join(self.source, name)
            return path if os.path.isfile(path) else None
        try:
            return str(hf_hub_download(self.source, name, **self._cache, **self._access))
        except LocalEntryNotFoundError as error:
            if try_to_load_from_cache(self.source, name, **self._cache) is _CACHED_NO_EXIST:
                return None
            msg = f"{self.source!r} is no folder, and the Hugging Face hub could not be asked for its {name}"
            raise FileNotFoundError(msg) from error
        except EntryNotFoundError:
            return None
        except (RepositoryNotFoundError, HFValidationError) as error:
            msg = f"model_name_or_path must be a folder or a repository of the hub; got {self.source!r}"
            raise FileNotFoundError(msg) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON object file; empty where the checkpoint does not have it."""
        path = self.find(name)
        if path is None:
            return {}
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{path} is not JSON: {error}"
            raise ValueError(msg) from error
        if not isinstance(content, dict):
            msg = f"{path} must hold a JSON object; got {type(content).__name__}"
            raise ValueError(msg)
        return content
