"""A store's path flows in, its published versions flow out, by role; each is open while somebody looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from whenwhy.errors import UserError
from whenwhy.server.answers import Answers, Question
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.users import User
from whenwhy.store import Store
from whenwhy.store.access_log import ACCESS_LOG_FILE, AccessLog
from whenwhy.store.open import Role
from whenwhy.store.publish import ROWS_FILE, current_version

Found = TypeVar("Found")


@dataclass(frozen=True)
class Version:
    """An open version and what it offers."""

    store: Store
    answers: Answers | Asked
    choices: Choices

    @property
    def name(self) -> str:
        """The version's content hash, short enough to read out."""
        return self.store.version.name[:8]


class Asked:
    """Answers that are shared, and a line of the access log for each question of one who asks.

    Args:
        answers: shared by all who ask in the same role.
        log: of the store's questions.
        told: what each line begins with, such as user and page.
    """

    def __init__(self, answers: Answers | Asked, log: AccessLog, **told: Any) -> None:
        self._answers, self._log, self._told = answers, log, told

    def now(self, asked: Question) -> pa.Table:
        """The answer, waited for by the thread that calls."""
        with self._written(asked) as line:
            table = self._answers.now(asked)
            line["rows"] = table.num_rows
        return table

    def once(self, asked: Question, follow: Callable[[], Found]) -> Found:
        """What follows from an answer, made once for all."""
        return self._answers.once(asked, follow)

    async def answer(self, asked: Question) -> pa.Table:
        """The answer; written down also where somebody has asked the same before."""
        with self._written(asked) as line:
            table = await self._answers.answer(asked)
            line["rows"] = table.num_rows
        return table

    def _written(self, asked: Question) -> AbstractContextManager[dict[str, Any]]:
        return self._log.question(**self._told, query=asked.query, arguments=dict(asked.arguments))


class Published:
    """The versions that sessions see: a new session sees the one that CURRENT names, and keeps it.

    Args:
        path: a published store.
        pool: where questions are asked.
        access_log: where they are written down; None: in the store.

    Raises:
        UserError: no store, or a log that cannot be written to.

    Example:
        `published = Published(Path("demo/store"), ThreadPoolExecutor(4))`;
        `version = published.begin(User("alice", "viewer"), "overview")`, and at the session's end
        `published.end(version)`.
    """

    def __init__(self, path: Path, pool: Executor, access_log: Path | None = None) -> None:
        current_version(path)  # before a log is begun where no store is
        self._path, self._pool, self._log = path, pool, AccessLog(access_log or path / ACCESS_LOG_FILE)
        self._lock = threading.Lock()
        self._open: dict[tuple[Path, Role], Version] = {}
        self._sessions: dict[tuple[Path, Role], int] = {}

    def require(self, role: Role) -> None:
        """Nothing, where the store has something for the role.

        Raises:
            UserError: it has not.
        """
        with self._lock:
            self._current(role)

    def runs(self) -> list[dict[str, Any]]:
        """The rows of the table `runs` of the version that CURRENT names."""
        with self._lock:
            return self._current("viewer").store.runs()

    def begin(self, user: User, page: str) -> Version:
        """The version that CURRENT names, for a session that is told to `end`.

        Args:
            user: who asks, and whose role says which file is read.
            page: whose questions they are.

        Raises:
            UserError: the store has nothing for the role.
        """
        with self._lock:
            version = self._current(user.role)
            self._sessions[_key(version)] += 1
        asked = Asked(
            version.answers, self._log, user=user.name, page=page, role=user.role, version=version.store.version.name
        )
        return replace(version, answers=asked)

    def end(self, version: Version) -> None:
        """Nothing; a session does not need the version any more."""
        with self._lock:
            self._sessions[_key(version)] -= 1
            self._close_unused()

    def newer_than(self, version: Version) -> bool:
        """Whether another version has been published since a session began. It reads one small file."""
        try:
            return current_version(self._path) != version.store.version
        except UserError:  # nothing that a session could go to
            return False

    def _current(self, role: Role) -> Version:
        key = current_version(self._path), role
        if key not in self._open:
            if role == "analyst" and not (key[0] / ROWS_FILE).exists():
                raise UserError(
                    f"The store {self._path} has no {ROWS_FILE}, so nobody can be an analyst of it: look as a viewer, or "
                    "serve the store that was not shared."
                )
            self._open[key], self._sessions[key] = self._opened(role), 0
            self._close_unused()
        return self._open[key]

    def _opened(self, role: Role) -> Version:
        store = Store(self._path, role)
        answers = Answers(store, self._pool)
        asked = Asked(answers, self._log, role=role, version=store.version.name)
        return Version(store, answers, choices_of(asked, role))

    def _close_unused(self) -> None:
        """Versions that nobody looks at, and nobody will."""
        current = current_version(self._path)
        for key in [key for key, count in self._sessions.items() if count == 0 and key[0] != current]:
            self._open.pop(key).store.close()
            del self._sessions[key]


def _key(version: Version) -> tuple[Path, Role]:
    return version.store.version, version.store.role
