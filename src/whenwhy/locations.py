"""Where a stage's files lie: a folder of a file system, or a prefix of an object store. Published once in either.

A location is a `Path`, or for a URL such as s3://bucket/folder an fsspec path that answers as one. A file system
publishes by a hard link, an object store by put-if-absent; neither overwrites what is there.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from whenwhy.errors import StorageError, UserError
from whenwhy.working_folder import fsync, temporary_name

#: What no second attempt mends. (EIO, ESTALE... of a network file system may go away.)
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}

#: What a link says where there are none.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

#: What an object store answers to put-if-absent where something is, and where somebody is just putting something.
PRECONDITION_FAILED, CONFLICT = 412, 409

#: How often who meets another writer tries again.
CONFLICTS = 10

#: Reads of an object store at a time.
READERS = 16

#: Names the folder of local copies to the processes that this one starts.
_COPIES = "WHENWHY_COPIES"


def location(text: str | Path) -> Path:
    """The location that a path or a URL names; a URL's answers as a `Path` does.

    Raises:
        UserError: a kind of URL that no installed package knows.

    Example:
        >>> location("out/seq"), is_remote(location("memory://seq"))
        (PosixPath('out/seq'), True)
    """
    if not isinstance(text, str) or "://" not in text:
        return Path(text) if isinstance(text, str) else text
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if not re.fullmatch(r"[\w+.-]+://[^/].*", text):
        raise UserError(f"{text} names no bucket: write e.g. s3://bucket/folder.")
    from upath import UPath

    try:
        # A listing that is kept would not show what another machine has published.
        found = UPath(text.rstrip("/"), use_listings_cache=False)
        found.fs  # noqa: B018 -- imports the package
    except (ImportError, ValueError) as error:
        kind = str(text).partition("://")[0]
        raise UserError(
            f"{text}: places of the kind '{kind}' cannot be used here ({error}): install the package for it, e.g. "
            "pip install 'whenwhy[s3]' for s3://, or give a directory."
        ) from None
    return cast(Path, found)


def directory(text: str) -> Path:
    """The path that a text names.

    Raises:
        UserError: it is a bucket's.

    Example:
        >>> directory("store")
        PosixPath('store')
    """
    found = location(text)
    require_local(found, "This")
    return found


def is_remote(where: Path) -> bool:
    """Whether a place is in an object store.

    Example:
        >>> is_remote(Path("out"))
        False
    """
    return not isinstance(where, Path)


def require_local(where: Path, what: str) -> None:
    """Raises `UserError` if `what` would lie in an object store, where it cannot.

    Example:
        >>> require_local(Path("store"), "A store")
    """
    if is_remote(where):
        raise UserError(f"{what} must lie in a directory, not at {where}: give the path of one.")


def named(where: Path) -> str:
    """A place's whole name, as its URL or absolute path.

    Example:
        >>> named(location("memory://seq"))
        'memory://seq'
    """
    return str(where) if is_remote(where) else str(where.resolve())


def make_folder(where: Path) -> None:
    """A folder is there; an object store needs none."""
    if not is_remote(where):
        with _writing(where):
            where.mkdir(parents=True, exist_ok=True)


def publish_once(where: Path, content: bytes) -> bool:
    """True if `content` is at `where` now, whole and to stay; False if something else was there, which stays.

    Raises:
        UserError: it cannot be written, or the file system has no hard links.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> publish_once(folder / "a", b"first"), publish_once(folder / "a", b"second"), (folder / "a").read_bytes()
        (True, False, b'first')
    """
    if is_remote(where):
        with _reaching(where):
            for _ in range(CONFLICTS):
                try:
                    _file_system(where).pipe_file(_key(where), content, mode="create")
                except FileExistsError:
                    return False
                except Exception as error:
                    status = _status_of(error)
                    if status == PRECONDITION_FAILED:
                        return False
                    if status != CONFLICT:
                        raise
                else:
                    return True
            raise OSError(errno.EBUSY, "another writer is always under way")
    with _half_written(where) as temporary:
        temporary.write_bytes(content)
        fsync(temporary)
        try:
            os.link(temporary, where)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise UserError(
                    f"{where.parent} has no hard links ({error.strerror}), by which entries are published exactly once: "
                    "give another directory, or a bucket's own URL where this one is a bucket that was mounted."
                ) from None
            raise
    with _writing(where):
        fsync(where.parent)
    return True


def replace(where: Path, content: bytes) -> None:
    """`content` is at `where` now, whole, instead of what was there.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> replace(folder / "a", b"first"), replace(folder / "a", b"second"), (folder / "a").read_bytes()
        (None, None, b'second')
    """
    if is_remote(where):
        with _reaching(where):
            _file_system(where).pipe_file(_key(where), content)
        return
    with _half_written(where) as temporary:
        temporary.write_bytes(content)
        fsync(temporary)
        os.replace(temporary, where)
        fsync(where.parent)


def read(where: Path) -> bytes:
    """What is at a place.

    Raises:
        FileNotFoundError: nothing is.
    """
    if not is_remote(where):
        return where.read_bytes()
    with _reaching(where, missing=True):
        return bytes(_file_system(where).cat_file(_key(where)))


def read_all(wheres: Sequence[Path]) -> list[bytes]:
    """What is at several places, in their order; an object store is asked for many at a time.

    Raises:
        FileNotFoundError: at one of them nothing is.
    """
    if not wheres or not is_remote(wheres[0]):
        return [where.read_bytes() for where in wheres]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, wheres))


def exists(where: Path) -> bool:
    """Whether a file is at a place."""
    if not is_remote(where):
        return where.exists()
    with _reaching(where):
        try:
            return bool(_file_system(where).info(_key(where))["type"] == "file")
        except FileNotFoundError:
            return False


def names_in(folder: Path) -> list[str]:
    """The names of what lies in a folder, none if there is no folder."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    with _reaching(folder):
        try:
            found = _file_system(folder).ls(_key(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {folder.name})


def local_copy(where: Path, sha256: str, content: Callable[[], bytes]) -> Path:
    """A path, of a file in an object store, that other libraries can open; it goes when this process ends.

    The copies of a process and of those that it starts lie in one folder that is their user's alone, under the
    files' checksums.

    Args:
        content: the file's, verified.
    """
    copy = _copies() / f"{sha256}{where.suffix}"
    if not copy.exists():
        replace(copy, content())
    return copy


def workplace(where: Path) -> Path:
    """The local folder in which a stage that writes to a place keeps what only it reads: the place itself if it can.

    For an object store it is the same for every call on this machine, and its owner's alone.
    """
    if not is_remote(where):
        return where
    return _own_folder() / hashlib.sha256(str(where).encode()).hexdigest()[:16]


def require_put_if_absent(where: Path) -> None:
    """Raises `UserError` if an object store overwrites what is at `where` although it is told not to: by the same."""
    if is_remote(where) and publish_once(where, read(where)):
        raise UserError(
            f"{where}: this object store overwrites what is there (it knows no If-None-Match), so that two workers could "
            "publish the same shard: give a directory, or a store that knows it."
        )


def _own_folder() -> Path:
    """A folder for temporary files that is this user's alone, by name the same for all of the user's processes."""
    mine = Path(tempfile.gettempdir()) / f"whenwhy-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    told = mine.lstat()
    if told.st_uid != os.getuid() or told.st_mode & 0o077 or mine.is_symlink():
        raise UserError(f"{mine} is not yours alone: remove it, or set TMPDIR to a folder of your own.")
    return mine


def _copies() -> Path:
    """Where this process keeps local copies. Those of killed ones are removed."""
    named = os.environ.get(_COPIES)
    if named is None:
        for left in _own_folder().glob("copies-*"):
            if not _lives(int(left.name.rpartition("-")[2])):
                shutil.rmtree(left, ignore_errors=True)
        named = os.environ[_COPIES] = str(_own_folder() / f"copies-{os.getpid()}")
        Path(named).mkdir(exist_ok=True)
        atexit.register(shutil.rmtree, named, ignore_errors=True)
    return Path(named)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an object store's client keeps somewhere among an error's causes."""
    while error is not None:
        told = getattr(error, "response", None)
        if isinstance(told, dict) and "ResponseMetadata" in told:
            return int(told["ResponseMetadata"].get("HTTPStatusCode", 0))
        error = error.__cause__ or error.__context__
    return None


def _file_system(where: Path) -> Any:
    return where.fs  # type: ignore[attr-defined]


def _key(where: Path) -> str:
    """A place's name in its own file system."""
    return str(where.path)  # type: ignore[attr-defined]


@contextmanager
def _half_written(where: Path) -> Iterator[Path]:
    """A new name beside `where`, which is free again in the end."""
    temporary = where.parent / temporary_name()
    try:
        with _writing(where):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    """Says where it was that something could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _LASTING:
            raise UserError(
                f"{where.parent} cannot be written to ({error.strerror}): mend that, then run the same command again to "
                "continue."
            ) from error
        raise StorageError(error.errno, error.strerror, str(where.parent)) from error


@contextmanager
def _reaching(where: Path, missing: bool = False) -> Iterator[None]:
    """Says in one sentence what an object store's package says in many.

    Args:
        missing: nothing may be there, which the caller knows how to tell.
    """
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:
        if missing and isinstance(error, FileNotFoundError):
            raise
        told = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, FileNotFoundError | PermissionError) or "Credentials" in type(error).__name__:
            raise UserError(
                f"{where} cannot be reached ({told}): check the bucket's name and the credentials, then run the same "
                "command again to continue."
            ) from error
        raise StorageError(errno.EIO, f"cannot be reached ({told})", str(where)) from error
