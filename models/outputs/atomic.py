"""Files and folders that are whole or not there: written aside under a hidden name, synced, renamed.

A failure removes what was written aside. A kill leaves it as `.NAME.XXXXXXXX.partial` beside NAME: nothing reads it, as
sources pass over hidden names, and the next writing of NAME removes it. Whoever writes holds a lock on it, which ends
with the process, so that what another process still writes is left alone.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from vaegis.models.errors import Refusal

Value = TypeVar("Value")

SUFFIX = ".partial"
POSIX = os.name == "posix"  # elsewhere there are no such locks: what a kill leaves stays until somebody removes it
_NAME_CHARACTERS = 50  # of the target's name in the hidden one, which must not outgrow what a file system takes
_SYNCED_SINGLY = 64  # files: beyond, one sync of the whole machine takes less time than one of each


@contextmanager
def writing(what: str, remedy: str = "Name another place or free space.") -> Iterator[None]:
    """Says in a sentence why `what`, such as `--out FILE`, cannot be written.

    Raises:
        Refusal: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Refusal(f"{what} cannot be written: {reason(error)}. {remedy}") from error


@contextmanager
def explain(what: str, output: AbstractContextManager[Value]) -> Iterator[Value]:
    """Opens and ends `output`, such as `atomic_files(folder)`; errors of the block between stay as they are.

    Raises:
        Refusal: `output` cannot be opened or ended, said as `writing` does.
    """
    with writing(what):
        value = output.__enter__()
    try:
        yield value
    except BaseException as error:
        with writing(what):
            output.__exit__(type(error), error, error.__traceback__)
        raise
    with writing(what):
        output.__exit__(None, None, None)


def reason(error: OSError) -> str:
    """Why the system refused, in a few words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends, and is removed if the block raises.

    Makes the folders above. A link is followed; a device or pipe is written to as it is.

    Raises:
        OSError: the disk is full, the folder cannot be written, `path` is a folder.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _hidden(path.parent, path.name, folder=False) as aside:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)


def write_bytes(path: Path, raw: bytes) -> None:
    """Writes a file as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(raw)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends, and is removed if the block raises.

    Makes the folders above.

    Raises:
        OSError: as `atomic_file`; `path` is a folder that is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(path.parent, path.name) as aside:
        yield aside
        sync_files(aside)
        os.rename(aside, path)
        sync_folder(path.parent)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yields an empty folder whose files move to `folder` when the block ends, each whole and in place of one of its
    name; they are removed if the block raises.

    Makes `folder`, with them or not at all, where there is none.

    Raises:
        OSError: as `atomic_file`.
    """
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(parent, folder.name) as aside:
        yield aside
        sync_files(aside)
        if not folder.exists():
            os.rename(aside, folder)
            sync_folder(parent)
            return
        for where, _, names in os.walk(aside):
            there = folder / Path(where).relative_to(aside)
            there.mkdir(parents=True, exist_ok=True)
            for name in names:
                os.replace(Path(where) / name, there / name)
            sync_folder(there)


def hidden_folder(parent: Path, name: str) -> AbstractContextManager[Path]:
    """An empty folder `.NAME.XXXXXXXX.partial` in `parent`, to build in what will be NAME; removed when the block ends,
    with what is in it by then."""
    return _hidden(parent, name, folder=True)


def sync_files(folder: Path) -> None:
    """Makes what was written to the files and folders below outlast a power cut."""
    names = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    if POSIX and len(names) > _SYNCED_SINGLY:
        os.sync()
        return
    for name in names:
        with name.open("r+b") as file:
            os.fsync(file.fileno())
    for where, _, _ in os.walk(folder):
        sync_folder(Path(where))


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder outlast a power cut, where a folder can be opened."""
    if not POSIX:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _hidden(parent: Path, name: str, folder: bool) -> Iterator[Path]:
    """A locked, empty file or folder with a hidden name, removed when the block ends, if it is still there."""
    prefix = f".{name[:_NAME_CHARACTERS]}."
    _remove_abandoned(parent, prefix)
    path, handle = _created(parent, prefix, folder)
    try:
        yield path
    finally:
        _remove(path)
        if handle is not None:
            os.close(handle)


def _created(parent: Path, prefix: str, folder: bool) -> tuple[Path, int | None]:
    """A file or folder and the descriptor that holds its lock, where there are locks."""
    while True:
        path = parent / f"{prefix}{secrets.token_hex(4)}{SUFFIX}"
        if folder:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        if not POSIX:
            return path, None
        import fcntl

        # Until it is locked, another process may take it for abandoned and remove it: then once more.
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks: then nobody can take it for abandoned either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return path, handle
        os.close(handle)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes what writers left that were killed: what bears the prefix and no lock."""
    if not POSIX:
        return
    import fcntl

    with os.scandir(parent) as entries:
        names = [e.name for e in entries if e.name.startswith(prefix) and e.name.endswith(SUFFIX)]
    for name in names:
        try:
            handle = os.open(parent / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(parent / name)
        except OSError:
            pass  # somebody is writing it, or it is not ours to remove
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except FileNotFoundError:
        pass  # it was renamed
