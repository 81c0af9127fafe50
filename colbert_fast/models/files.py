"""Find the files of a checkpoint, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from colbert_fast.models.file_checks import check_regular, check_subfolder, read_json
from colbert_fast.models.staging import recover

# The files that decide which kind of checkpoint a repository holds. If the cached snapshot is known to lack one of
# these files although the repository has it, the snapshot is refused and not loaded as another kind.
_DECISIVE = (
    *("linear.pt", "metadata.json", "colbert_linear.pt"),
    *("config.json", "modules.json", "config_sentence_transformers.json"),
)


def cache_folder(kwargs: dict[str, Any]) -> str | os.PathLike[str] | None:
    """Return the folder of cached repositories: an argument, or else the variable that sentence-transformers reads."""
    folder: str | os.PathLike[str] | None = kwargs.get("cache_folder")
    return os.getenv("SENTENCE_TRANSFORMERS_HOME") if folder is None else folder


class Files:
    """The files of a checkpoint, in a folder or on the hub.

    If the hub cannot be asked, the snapshot of the repository in the cache is read like a folder. A file that the
    snapshot lacks then counts as a file that the checkpoint lacks.
    """

    def __init__(self, source: Any, kwargs: dict[str, Any]) -> None:
        if not isinstance(source, (str, os.PathLike)) or not isinstance(os.fspath(source), str):
            msg = f"model_name_or_path must be a str or a path; got {source!r}"
            raise TypeError(msg)
        self.source: str = os.fspath(source)
        if self.source.startswith("~") and not os.path.lexists(self.source):
            self.source = os.path.expanduser(self.source)
        recover(self.source)
        self.is_local: bool = os.path.isdir(self.source)
        looks_like_path = os.path.isabs(self.source) or self.source.startswith((".", "~")) or self.source.count("/") > 1
        if not self.is_local and (looks_like_path or os.path.lexists(self.source)):
            msg = f"model_name_or_path must be a folder or a repository of the hub; no folder {self.source!r}"
            raise FileNotFoundError(msg)
        self._cache: dict[str, Any] = {
            "cache_dir": cache_folder(kwargs),
            "revision": kwargs.get("revision"),
        }
        self._access: dict[str, Any] = {
            "token": kwargs.get("token"),
            "local_files_only": kwargs.get("local_files_only", False),
            "force_download": bool((kwargs.get("model_kwargs") or {}).get("force_download")),
        }
        self._found: dict[str, str | None] = {}
        self._offline = bool(self._access["local_files_only"] or constants.HF_HUB_OFFLINE)
        if not self.is_local and self._offline:
            self._turn_to_snapshot("its files")

    def find(self, name: str) -> str | None:
        """Return the path of a file, after a download if needed, or None if the checkpoint does not have the file."""
        if self.is_local:
            path = os.path.join(self.source, name)
            return path if check_regular(path) else None
        if name not in self._found:
            self._found[name] = self._ask(name)
        return self._found[name]

    def _ask(self, name: str) -> str | None:
        """Return the path of a file of a repository, or None if the hub says that the file is not there."""
        if self._offline:
            msg = f"{self.source!r} is no folder, and the Hugging Face hub could not be asked for its {name}"
            raise FileNotFoundError(msg)
        try:
            return str(hf_hub_download(self.source, name, **self._cache, **self._access))
        except LocalEntryNotFoundError as error:
            if self._turn_to_snapshot(name):
                return self.find(name)
            if try_to_load_from_cache(self.source, name, **self._cache) is _CACHED_NO_EXIST:
                return None
            msg = f"{self.source!r} is no folder, and the Hugging Face hub could not be asked for its {name}"
            raise FileNotFoundError(msg) from error
        except EntryNotFoundError:
            return None
        except RevisionNotFoundError as error:
            msg = f"revision must be a revision of the repository {self.source!r}; got {self._cache['revision']!r}"
            raise FileNotFoundError(msg) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            msg = f"model_name_or_path must be a folder or a repository of the hub; got {self.source!r}"
            raise FileNotFoundError(msg) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object that a JSON file holds, or an empty one if the checkpoint does not have the file."""
        path = self.find(name)
        return {} if path is None else read_json(path)

    def modules(self) -> list[dict[str, Any]]:
        """Return the entries of modules.json, or an empty list if the checkpoint does not have this file.

        Each entry has a "type", and a "path" that stays inside the checkpoint.
        """
        path = self.find("modules.json")
        if path is None:
            return []
        entries: list[dict[str, Any]] = read_json(path, list)
        if not entries:
            msg = f"{path} must list the modules of the checkpoint; got an empty list"
            raise ValueError(msg)
        for entry in entries:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("path", "type")):
                msg = f'{path} must list objects with "path" and "type", two strings; got {entry!r:.200}'
                raise ValueError(msg)
            check_subfolder(path, entry["path"])
        return entries

    @property
    def folder(self) -> str:
        """The folder that holds the files: the local folder itself, or the snapshot in the cache."""
        path = None if self.is_local else self.find("config.json") or self.find("modules.json")
        return self.source if path is None else str(Path(path).parent)

    def _turn_to_snapshot(self, wanted: str) -> bool:
        """Read all files from the snapshot in the cache from now on. Returns False if there is no snapshot."""
        try:
            folder = snapshot_download(
                self.source, **self._cache, local_files_only=True, allow_patterns=list(_DECISIVE)
            )
        except LocalEntryNotFoundError as error:
            if hasattr(error, "snapshot_path"):
                msg = (
                    f"the hub could not be asked for {wanted} of {self.source!r}, and its cached snapshot is not whole"
                )
                raise FileNotFoundError(msg) from error
            return False
        except HFValidationError:  # not a name of a repository; `find` raises the error for it
            return False
        self.source, self.is_local = str(folder), True
        return True
