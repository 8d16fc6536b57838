"""A store's path flows in, its published version flows out, newly opened when another one is published."""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from whenwhy.server.answers import Answers
from whenwhy.server.choices import Choices, choices_of
from whenwhy.store import Store, open_store
from whenwhy.store.open import Role
from whenwhy.store.publish import current_version


@dataclass(frozen=True)
class Version:
    """An open version and what it offers."""

    store: Store
    answers: Answers
    choices: Choices

    @property
    def name(self) -> str:
        """The version's content hash, short enough to read out."""
        return self.store.version.name[:8]


class Published:
    """The version that new sessions see. Sessions that have begun keep theirs."""

    def __init__(self, path: Path, role: Role, pool: Executor, access_log: Path | None = None) -> None:
        self._path, self._role, self._pool, self._access_log = path, role, pool, access_log
        self._lock = threading.Lock()
        self._version = self._open()

    def now(self) -> Version:
        """The version that CURRENT names."""
        with self._lock:
            if current_version(self._path) != self._version.store.version:
                # The old one stays open: sessions that began with it still read it.
                self._version = self._open()
            return self._version

    def _open(self) -> Version:
        store = open_store(self._path, self._role, access_log=self._access_log)
        answers = Answers(store, self._pool)
        return Version(store, answers, choices_of(answers))
