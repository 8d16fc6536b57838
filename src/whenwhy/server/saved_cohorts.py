"""Names flow in, the cohorts that people saved under them flow out: kept beside a store's versions, for all who see it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from whenwhy.errors import UserError, unknown_name
from whenwhy.locations import replace
from whenwhy.server.cohort import Cohort, Condition, without_members

SAVED_FILE: Final = "cohorts.json"

#: What the names of those begin with that nobody named: lines that were drawn around predictions.
DRAWN: Final = "drawn in the plane "

#: So many of the lines that were drawn around predictions are kept, the latest.
DRAWN_KEPT: Final = 50

_NAME: Final = re.compile(r"[\w][\w .,+-]{0,59}")


class SavedCohorts:
    """Cohorts by name, which an address may have.

    Args:
        store_path: beside whose versions they are kept.
        ready_alone: those of a class and a stratum alone are known, which everybody may see; a name may say whom it means.
    """

    def __init__(self, store_path: Path, ready_alone: bool = False) -> None:
        self._store_path, self._ready_alone = store_path, ready_alone
        self._file = store_path / SAVED_FILE
        self._seen: tuple[float, dict[str, dict[str, Any]]] | None = None

    def for_viewers(self) -> SavedCohorts:
        """The same, of which viewers may know."""
        return SavedCohorts(self._store_path, ready_alone=True)

    @property
    def names(self) -> list[str]:
        """The names that people gave, in order; not those of lines that were drawn around predictions."""
        return sorted(name for name, saved in self._known().items() if not saved.get("drawn"))

    def names_by(self, user: str) -> list[str]:
        """Those that a user gave."""
        saved = self._known()
        return [name for name in self.names if saved[name]["by"] == user]

    def condition(self, name: str) -> Condition:
        """The condition that a saved cohort has beside its class and stratum.

        Raises:
            UserError: no such name, or it has none.
        """
        sql = self._entry(name)["sql"]
        if sql is None:
            raise UserError(f"The saved cohort '{name}' is a class and a stratum alone: choose those.")
        return Condition(f"saved:{name}", sql, name)

    def cohort(self, name: str) -> Cohort:
        """The cohort of a name.

        Raises:
            UserError: no such name.
        """
        saved = self._entry(name)
        return Cohort(saved["class"], saved["stratum"], () if saved["sql"] is None else (self.condition(name),))

    def save(self, name: str, cohort: Cohort, by: str) -> None:
        """Nothing; the cohort has this name.

        Raises:
            UserError: a name that cannot be, or that is taken by another cohort.
        """
        self._save(name, {"class": cohort.class_label, "stratum": cohort.stratum, "sql": cohort.predicate}, by)

    def draw(self, name: str, sql: str, by: str) -> None:
        """Nothing; the predictions that a line was drawn around have the name, until many more lines were drawn."""
        self._save(name, {"class": "all", "stratum": "all", "sql": sql, "drawn": True}, by)

    def _save(self, name: str, told: dict[str, Any], by: str) -> None:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"'{name[:60]}' cannot be a cohort's name: use up to 60 letters, digits, spaces or hyphens."
            )
        saved = self._read()
        if name in saved:
            if any(saved[name][key] != told[key] for key in ("class", "stratum", "sql")):
                raise UserError(f"There is another cohort '{name}' already: choose another name.")
            if not told.get("drawn"):
                return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        saved = {**saved, name: {**told, "by": by, "at": at}}
        drawn = sorted((one for one in saved if saved[one].get("drawn")), key=lambda one: str(saved[one]["at"]))
        for old in drawn[:-DRAWN_KEPT]:
            del saved[old]
        self._write(saved)

    def _entry(self, name: str) -> dict[str, Any]:
        saved = self._known()
        if name not in saved:
            if name.startswith(DRAWN):
                raise UserError(f"'{name}' is not kept any more, or not for you to see: draw the line again.")
            raise unknown_name("saved cohort", name, self.names)
        return saved[name]

    def _known(self) -> dict[str, dict[str, Any]]:
        return {name: told for name, told in self._read().items() if told["sql"] is None or not self._ready_alone}

    def forget(self, name: str, by: str | None = None) -> None:
        """Nothing; no cohort has the name.

        Args:
            name: of a saved cohort.
            by: who must have saved it; None: whoever did.

        Raises:
            UserError: no such name, or somebody else saved it.
        """
        if by is not None and self._entry(name)["by"] != by:
            raise UserError(f"Somebody else saved the cohort '{name}': they or an analyst may forget it.")
        self._entry(name)
        self._write({other: told for other, told in self._read().items() if other != name})

    def naming(self, subjects: Collection[int]) -> dict[str, dict[str, Any]]:
        """The cohorts that name one of these patients, as they are without them."""
        return {
            name: {**told, "sql": without}
            for name, told in self._read().items()
            if told["sql"] is not None and (without := without_members(told["sql"], subjects)) != told["sql"]
        }

    def leave(self, subjects: Collection[int]) -> int:
        """How many saved cohorts named one of these patients; they do no more."""
        changed = self.naming(subjects)
        if changed:
            self._write({**self._read(), **changed})
        return len(changed)

    def _write(self, saved: dict[str, dict[str, Any]]) -> None:
        try:
            replace(self._file, json.dumps(saved, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise UserError(f"{self._file} cannot be written ({error.strerror}): the cohort was not saved.") from None

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            modified = self._file.stat().st_mtime_ns
            if self._seen is None or self._seen[0] != modified:
                self._seen = (modified, json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self._file} cannot be read ({error}): mend it, or move it away.") from None
        return self._seen[1]
