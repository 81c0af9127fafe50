"""A folder is replaced in one step, files that are not replaced stay in it, and no hidden folder is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kills import NOTES, add_notes, contents, finish, in_child, kill_at_event, start

from colbert_fast.models import folder_contents, folders, staging
from colbert_fast.models.saving import checkpoint_files

OLD = {"config.json": b"old", "model.safetensors": b"old weights", "vocab.txt": b"stale"}
NEW = {"config.json": b"new", "model.safetensors": b"new weights", "1_Dense/config.json": b"new"}


def writer(files: dict[str, bytes]) -> Callable[[str], None]:
    def write(folder: str) -> None:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return write


def replace(path: Path | str, files: dict[str, bytes] = NEW) -> None:
    folders.replace(path, writer(files), checkpoint_files)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of an old checkpoint with files of the user. Its parent folder holds nothing else."""
    folder = tmp_path / "parent" / "old"
    folder.mkdir(parents=True)
    writer(OLD)(str(folder))
    add_notes(folder)
    return folder


def assert_new(folder: Path) -> None:
    assert contents(folder) == {**NEW, **NOTES}
    assert [name for name in os.listdir(folder.parent) if name.startswith(staging.MARK)] == []


def assert_old(folder: Path) -> None:
    assert contents(folder) == {**OLD, **NOTES}
    assert os.listdir(folder.parent) == [folder.name]


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda one, other: errno.EINVAL)


def immovable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the system treat `folder` as a mount point. A test without special rights cannot make a real one."""
    rename = os.rename

    def refuse(source: Any, target: Any) -> None:
        if str(folder) in (str(source), str(target)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)


class TestPaths:
    def test_a_new_folder_and_its_parents(self, tmp_path: Path) -> None:
        replace(tmp_path / "a" / "b" / "c")
        assert contents(tmp_path) == {f"a/b/c/{name}": content for name, content in NEW.items()}

    @pytest.mark.parametrize("exchange", [True, False])
    def test_over_an_old_one(self, exchange: bool, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not exchange:
            without_exchange(monkeypatch)
        replace(old)
        assert_new(old)
        assert os.listdir(old.parent) == [old.name]

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir(mode=0o711)
        replace(tmp_path / "empty")
        assert contents(tmp_path / "empty") == NEW
        assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o711

    def test_the_longest_name(self, tmp_path: Path) -> None:
        replace(tmp_path / ("n" * 255))
        replace(tmp_path / ("n" * 255))
        assert contents(tmp_path / ("n" * 255)) == NEW

    def test_a_link_stays(self, old: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("parent/old")
        replace(tmp_path / "link")
        assert os.readlink(tmp_path / "link") == "parent/old"
        assert_new(old)

    @pytest.mark.parametrize("path", ["old", "old/", "./old", "old/checkpoint-500/..", "{}/old/"])
    def test_names_of_one_folder(self, path: str, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(old.parent)
        replace(path.format(old.parent))
        assert_new(old)

    @pytest.mark.parametrize("inside", ["", "checkpoint-500"])
    def test_the_working_folder(self, inside: str, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(old / inside)
        replace("." if not inside else "..")
        assert os.getcwd() == str(old / inside).rstrip("/")
        assert os.path.samefile(".", old / inside)
        assert_new(old)

    @pytest.mark.parametrize("kind", ["file", "file/", "file/inside", "fifo", "dangling", "dangling/inside", "loop"])
    def test_no_folder(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "dangling").symlink_to("nothing")
        (tmp_path / "loop").symlink_to("loop")
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(FileExistsError, match=r"path must be a folder; got the (file|link to nothing) '.*\w'"):
            replace(f"{tmp_path}/{kind}")
        assert sorted(os.listdir(tmp_path)) == before

    def test_bytes(self) -> None:
        with pytest.raises(TypeError, match="path must be a str"):
            replace(b"folder")  # type: ignore[arg-type]


class TestPermissions:
    def test_what_umask_gives(self, tmp_path: Path) -> None:
        def write(folder: str) -> None:
            writer(NEW)(folder)
            # safetensors writes files that only their owner can read.
            os.chmod(os.path.join(folder, "model.safetensors"), 0o600)

        before = os.umask(0o027)
        try:
            folders.replace(tmp_path / "new", write, checkpoint_files)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
        for name in NEW:
            assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o640

    def test_those_of_the_old_folders(self, old: Path) -> None:
        old.chmod(0o2775)
        (old / "checkpoint-500").chmod(0o555)
        # From these times a training knows which of its checkpoints is the oldest.
        os.utime(old / "checkpoint-500", (1e9, 1e9))
        replace(old)
        assert (old / "checkpoint-500").stat().st_mtime == 1e9
        assert stat.S_IMODE(old.stat().st_mode) == 0o2775
        assert stat.S_IMODE((old / "checkpoint-500").stat().st_mode) == 0o555
        (old / "checkpoint-500").chmod(0o755)
        assert_new(old)

    def test_a_folder_that_cannot_be_written(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # In containers the tests run as root, and root can write everything. So os.access is replaced.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="old"):
            replace(old)
        assert_old(old)


class TestUsersFiles:
    @pytest.mark.parametrize("links", [True, False])
    def test_every_kind_survives(self, links: bool, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not links:

            def refuse(*args: object, **kwargs: object) -> None:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))

            monkeypatch.setattr(os, "link", refuse)
        else:
            os.mkfifo(old / "fifo")
        (old / "empty").mkdir()
        (old / "outside").symlink_to("/")
        (old / "nowhere").symlink_to("nothing")
        inode = (old / "notes.txt").stat().st_ino
        replace(old)
        assert {name for name in os.listdir(old) if not links or name != "fifo"} == {
            *("1_Dense", "README.md", "checkpoint-500", "config.json", "empty", "model.safetensors", "notes.txt"),
            *("nowhere", "outside"),
        }
        assert os.readlink(old / "outside") == "/"
        assert os.readlink(old / "nowhere") == "nothing"
        # If hard links are refused, a copy is made. As soon as the new folder is in place, the original replaces the
        # copy.
        assert (old / "notes.txt").stat().st_ino == inode
        if links:
            assert stat.S_ISFIFO((old / "fifo").stat().st_mode)
            (old / "fifo").unlink()
        assert {name: (old / name).read_bytes() for name in NOTES} == NOTES

    def test_what_comes_at_the_last_moment_survives(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install = folders._install

        def late(stage: str, target: str) -> None:
            (old / "late").mkdir()
            (old / "late" / "file").write_bytes(b"late")
            (old / "written").write_bytes(b"newer notes")
            os.replace(old / "written", old / "notes.txt")
            (old / "pytorch_model.bin").write_bytes(b"a checkpoint's, which goes")
            install(stage, target)

        monkeypatch.setattr(folders, "_install", late)
        replace(old)
        assert contents(old) == {**NEW, **NOTES, "notes.txt": b"newer notes", "late/file": b"late"}

    def test_what_comes_to_a_new_folder_survives(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install = folders._install

        def late(stage: str, target: str) -> None:
            writer({**OLD, **NOTES, "2_Dense/model.safetensors": b"of another save"})(target)
            Path(target, "modules.json").write_text('[{"path": "2_Dense"}]')
            install(stage, target)

        (tmp_path / "parent").mkdir()
        monkeypatch.setattr(folders, "_install", late)
        replace(tmp_path / "parent" / "new")
        assert_new(tmp_path / "parent" / "new")

    def test_what_goes_meanwhile(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        walk = folder_contents.walk

        def removing(folder: str, inside: str = "") -> Any:
            for path, entry in walk(folder, inside):
                if path == "notes.txt" and folder == str(old):
                    os.unlink(entry.path)
                if path == "checkpoint-500" and folder == str(old):
                    shutil.rmtree(entry.path)
                yield path, entry

        monkeypatch.setattr(folder_contents, "walk", removing)
        replace(old)
        assert {name for name in contents(old) if name in NOTES} == {"README.md"}

    @pytest.mark.parametrize(("name", "inside"), [("model.safetensors", "mine"), ("1_Dense", None)])
    def test_a_name_that_is_taken(self, name: str, inside: str | None, old: Path) -> None:
        (old / name).unlink(missing_ok=True)
        if inside:
            (old / name).mkdir()
        (old / name / (inside or "")).write_bytes(b"mine")
        before = contents(old)
        with pytest.raises(FileExistsError, match=f"path must not hold a (file|folder) '{name}', where a"):
            replace(old)
        assert contents(old) == before
        assert os.listdir(old.parent) == ["old"]


class TestErrors:
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()])
    @pytest.mark.parametrize("where", ["write", "fsync", "rename", "link"])
    def test_nothing_changes(
        self, error: BaseException, where: str, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        def write(folder: str) -> None:
            writer(NEW)(folder)
            if where == "write":
                fail()
            if where == "link" and isinstance(error, OSError):
                monkeypatch.setattr(shutil, "copy2", fail)
            monkeypatch.setattr(os, where, fail, raising=False)

        with pytest.raises(type(error)):
            folders.replace(old, write, checkpoint_files)
        monkeypatch.undo()
        assert_old(old)

    @pytest.mark.parametrize("exchange", [True, False])
    def test_an_interrupt_right_after_the_exchange(
        self, exchange: bool, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "_exchange" if exchange else "_set_aside"
        if not exchange:
            without_exchange(monkeypatch)
        real = getattr(folders, name)

        def interrupted(one: str, other: str) -> int:
            assert real(one, other) == 0
            if other == str(old):
                raise KeyboardInterrupt
            return 0

        monkeypatch.setattr(folders, name, interrupted)
        monkeypatch.chdir(old)
        with pytest.raises(KeyboardInterrupt):
            replace(old)
        assert os.path.samefile(".", old)
        assert_new(old)

    def test_another_error_of_the_exchange(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = folders._exchange
        monkeypatch.setattr(
            folders, "_exchange", lambda one, other: errno.EIO if other == str(old) else real(one, other)
        )
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            replace(old)
        assert_old(old)


class TestLeftovers:
    def leave(self, old: Path) -> Path:
        """Kill a process while it replaces `old`, and return the hidden folder that is left."""

        def killed(folder: str) -> None:
            writer(NEW)(folder)
            os.kill(os.getpid(), 9)

        assert in_child(lambda: folders.replace(old, killed, checkpoint_files)) == -9
        (left,) = set(old.parent.iterdir()) - {old}
        assert contents(left) == NEW
        return left

    def test_the_next_call_removes_them(self, old: Path) -> None:
        self.leave(old)
        replace(old.parent / "other")
        assert len(os.listdir(old.parent)) == 3
        shutil.rmtree(old.parent / "other")
        replace(old)
        assert os.listdir(old.parent) == ["old"]

    def test_a_folder_in_use_is_no_leftover(self, old: Path) -> None:
        writing, go_on = threading.Event(), threading.Event()

        def write(folder: str) -> None:
            writer(NEW)(folder)
            writing.set()
            assert go_on.wait(60)

        with ThreadPoolExecutor(1) as executor:
            slow = executor.submit(folders.replace, old, write, checkpoint_files)
            assert writing.wait(60)
            try:
                replace(old, {**NEW, "config.json": b"the quick one"})
                # It is no leftover for another process either.
                assert in_child(lambda: replace(old, {**NEW, "config.json": b"the quick one"})) == 0
                assert (old / "config.json").read_bytes() == b"the quick one"
                assert len(os.listdir(old.parent)) == 2
            finally:
                go_on.set()
            slow.result()
        assert_new(old)

    def test_what_was_set_aside_is_put_back(self, old: Path) -> None:
        os.rename(old, staging.hidden_name(str(old.parent), str(old), "replaced"))
        staging.recover(old.parent / "other")
        assert not old.exists()
        staging.recover(old)
        assert_old(old)

    def test_what_was_set_aside_goes_once_the_new_one_is_there(self, old: Path) -> None:
        shutil.copytree(old, staging.hidden_name(str(old.parent), str(old), "replaced"))
        staging.recover(old)
        assert len(os.listdir(old.parent)) == 2
        replace(old)
        assert_new(old)


class TestImmovable:
    def test_an_empty_one_is_filled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "mount"
        folder.mkdir()
        add_notes(folder)
        # These files look like those that an earlier call left when it was killed.
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / "vocab.txt").write_bytes(b"stale")
        immovable(monkeypatch, folder)
        order = []
        move = os.replace
        monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target), move(source, target)))
        replace(folder)
        assert_new(folder)
        assert order[-1] == str(folder / "config.json")

    def test_a_checkpoint_is_not_touched(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        immovable(monkeypatch, old)
        with pytest.raises(FileExistsError, match=r"in one step \(.*busy\); got .*old': save to a folder inside it"):
            replace(old)
        assert_old(old)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    def test_a_parent_that_cannot_be_written(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        mkdir = os.mkdir

        def refuse(path: str, *args: Any) -> None:
            if os.path.dirname(path) == str(tmp_path):
                raise OSError(code, os.strerror(code), path)
            mkdir(path, *args)

        monkeypatch.setattr(os, "mkdir", refuse)
        replace(folder)
        assert contents(folder) == NEW
        with pytest.raises(FileExistsError, match="path must not hold a checkpoint"):
            replace(folder)
        with pytest.raises(OSError, match=os.strerror(code)):
            replace(tmp_path / "new")

    def test_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a kill the folder holds the whole checkpoint, or nothing that loads. Then the next call succeeds."""
        for number in range(1, 1000, 3):
            folder = tmp_path / str(number)
            folder.mkdir()
            add_notes(folder)
            with monkeypatch.context() as patch:
                immovable(patch, folder)

                def work(number: int = number, folder: Path = folder) -> None:
                    kill_at_event(number)
                    replace(folder)

                status = in_child(work)
                found = {name: content for name, content in contents(folder).items() if staging.MARK not in name}
                if "config.json" in found:
                    assert found == {**NEW, **NOTES}
                else:
                    assert found.items() <= {**NEW, **NOTES}.items()
                    assert found.items() >= NOTES.items()
                    replace(folder)
                    assert_new(folder)
            if status == 0:
                break
        assert number > 20
        assert_new(folder)

    def test_two_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "mount"
        folder.mkdir()
        immovable(monkeypatch, folder)
        kinds = [dict.fromkeys(NEW, b"%d" % n) for n in range(4)]
        with ThreadPoolExecutor(4) as executor:
            calls = [executor.submit(replace, folder, kind) for kind in kinds]
        errors = [call.exception() for call in calls]
        assert errors.count(None) == 1
        assert contents(folder) == kinds[errors.index(None)]

    def test_an_error_on_the_way_is_undone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "mount"
        folder.mkdir()
        add_notes(folder)
        immovable(monkeypatch, folder)
        move = os.replace

        def fail(source: str, target: str) -> None:
            if target.endswith("/config.json"):
                raise OSError(errno.ENOSPC, "full")
            move(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="full"):
            replace(folder)
        assert contents(folder) == NOTES


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_every_event(exchange: bool, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    shutil.copytree(old, tmp_path / "copy")
    found = []
    status = -9
    while status == -9:

        def work(number: int = len(found) + 1) -> None:
            kill_at_event(number)
            replace(old)

        status = in_child(work)
        staging.recover(old)
        files = contents(old)
        assert files in ({**OLD, **NOTES}, {**NEW, **NOTES}), (len(found), files)
        found.append(files["config.json"] == b"new")
        if status == -9:
            shutil.rmtree(old)
            shutil.copytree(tmp_path / "copy", old)
    assert status == 0
    # A kill before some operation leaves the old checkpoint, and a kill after this operation leaves the new one.
    assert found == sorted(found)
    assert sum(found) > 3
    assert len(found) - sum(found) > 20
    replace(old)
    assert_new(old)


@pytest.mark.parametrize("exchange", [True, False])
def test_many_at_once(exchange: bool, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    kinds = [dict.fromkeys(NEW, b"%d" % n) for n in range(8)]

    def several(n: int) -> None:
        for _ in range(5):
            replace(old, kinds[n])

    def in_threads(first: int) -> None:
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(several, range(first, first + 4)))

    child = start(lambda: in_threads(4))
    try:
        in_threads(0)
    finally:
        status = finish(child)
    assert status == 0
    staging.recover(old)
    assert contents(old) in [{**kind, **NOTES} for kind in kinds]
    replace(old)
    assert_new(old)
