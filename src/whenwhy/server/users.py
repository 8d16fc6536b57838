"""A file of names, roles and password hashes flows in, known users flow out, as the file is now."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
import unicodedata
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from whenwhy.errors import UserError, unknown_name
from whenwhy.store.open import ROLES, Role

log = logging.getLogger(__name__)

#: Length matters, kinds of characters do not (NIST SP 800-63B); a longer one than the most only costs time.
FEWEST_CHARACTERS, MOST_CHARACTERS = 12, 1024

#: What a name may not be longer than.
LONGEST_NAME = 128

#: RFC 9106's parameters for machines that have other work too: 64 MiB and about 50 ms a password.
_HASHER = PasswordHasher()


@dataclass(frozen=True)
class User:
    """Who looks, and as what."""

    name: str
    role: Role


class UsersFile:
    """The users of a file, which is read anew when it has changed.

    The file is JSON, `{"alice": {"role": "viewer", "password": "$argon2id$..."}}`, for its owner alone (mode 0600).
    While it cannot be read, or others may read it, nobody is known.

    Args:
        file: made by `whenwhy users add`.

    Raises:
        UserError: no such file, not of this form, or one that others may read.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "users.json"
        >>> add_user(file, "alice", "viewer", "correct horse battery")
        >>> users = UsersFile(file)
        >>> users.user("alice")
        User(name='alice', role='viewer')
        >>> users.with_password("alice", "a wrong password") is None
        True
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._users = read_users(file)
        self._as_of = self._stamp()

    def user(self, name: str) -> User | None:
        """The user of that name, if there is one now."""
        entry = self._now().get(name)
        return None if entry is None else User(name, entry["role"])

    def mark(self, name: str) -> str | None:
        """What changes with a user's password: a session that was begun with another one is over."""
        password = self._now().get(name, {}).get("password")
        return None if password is None else hashlib.sha256(password.encode()).hexdigest()[:16]

    def with_password(self, name: str, password: str) -> User | None:
        """The user, if the password is right. It takes as long where there is no such user."""
        known = self._now().get(name, {}).get("password")
        try:
            _HASHER.verify(known or _nobodys_hash(), _normal(password)[:MOST_CHARACTERS])
        except (Argon2Error, InvalidHashError):
            return None
        return self.user(name)

    def _now(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            stamp = self._stamp()
            if stamp != self._as_of:
                self._as_of = stamp
                try:
                    self._users = read_users(self.file)
                except UserError as error:
                    log.error("Nobody is let in: %s", error)
                    self._users = {}
            return self._users

    def _stamp(self) -> tuple[int, ...]:
        try:
            told = self.file.stat()
        except OSError:
            return ()
        # The time of the inode's change too: a mode may change and the content not.
        return told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


def read_users(file: Path) -> dict[str, dict[str, Any]]:
    """Each user's entry by name.

    Raises:
        UserError: no such file, not of this form, or one that others may read.
    """
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if mode & 0o077:
                raise UserError(f"Others may read or change {file} (mode {mode:04o}): run `chmod 600 {file}`.")
            content = json.load(opened)
    except FileNotFoundError:
        raise UserError(f"There is no {file}: make it by `whenwhy users add {file} NAME --role viewer`.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give a file that `whenwhy users` made.") from None
    except ValueError:  # no JSON, or no text
        raise UserError(f"{file} is no JSON: restore it, or make it anew by `whenwhy users add`.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no file of users: make it by `whenwhy users add`.")
    for name, entry in content.items():
        if (
            not isinstance(entry, dict)
            or entry.get("role") not in list(ROLES)
            or not isinstance(entry.get("password"), str | None)
        ):
            raise UserError(
                f"The user '{name}' in {file} has no role viewer or analyst, or a password that is no text: remove the "
                "user by hand and run `whenwhy users add`."
            )
    return content


def add_user(file: Path, name: str, role: str, password: str | None) -> None:
    """Nothing; the file, made if need be, holds the user, instead of an earlier one of this name.

    Args:
        file: of users.
        name: any printable characters without spaces around.
        role: viewer or analyst.
        password: None: such a user comes through a proxy alone.

    Raises:
        UserError: no name, no role, or a password that is too short or too long.
    """
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise UserError(f"{name!r} is no name: give 1 to {LONGEST_NAME} printable characters, no space around them.")
    if role not in ROLES:
        raise unknown_name("role", role, ROLES)
    entry: dict[str, Any] = {"role": role}
    if password is not None:
        if not FEWEST_CHARACTERS <= len(_normal(password)) <= MOST_CHARACTERS:
            raise UserError(
                f"A password has {FEWEST_CHARACTERS} to {MOST_CHARACTERS} characters: choose another one, such as a few "
                "words that do not belong together."
            )
        entry["password"] = _HASHER.hash(_normal(password))
    _write(file, (read_users(file) if file.exists() else {}) | {name: entry})


def remove_user(file: Path, name: str) -> None:
    """Nothing; the file does not hold the user any more.

    Raises:
        UserError: there is no such user.
    """
    users = read_users(file)
    if name not in users:
        raise unknown_name("user", name, users, str(file))
    _write(file, {other: entry for other, entry in users.items() if other != name})


def _write(file: Path, users: dict[str, dict[str, Any]]) -> None:
    """The file is whole at every instant, and never anybody else's to read."""
    temporary = file.parent / f".{file.name}-{uuid.uuid4().hex}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as opened:
            json.dump(users, opened, indent=1, ensure_ascii=False, sort_keys=True)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _normal(password: str) -> str:
    """The same characters, however a keyboard composes them."""
    return unicodedata.normalize("NFKC", password)


@cache
def _nobodys_hash() -> str:
    """A hash that costs as much as any user's, of a password that nobody knows."""
    return _HASHER.hash(uuid.uuid4().hex)
