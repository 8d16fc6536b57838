"""Errors that a user can mend: one sentence that names what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with status 2."""


class Stopped(Exception):  # noqa: N818 -- no error: somebody asked for it
    """A signal asked for a stop: what was finished is kept, and the command line exits with status 143; or a `Stop` did, of a question."""


class TimeIsUp(BaseException):
    """What was begun when a stop was asked for has not ended in time: it is dropped. No task may catch it."""


class StorageError(OSError):
    """What is stored could not be reached or written, which may go another time: a network that did not answer."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """A `UserError` that names the nearest known name.

    Example:
        >>> print(unknown_name("method", "integrated_gradient", ["integrated_gradients", "saliency"]))
        There is no method 'integrated_gradient': did you mean 'integrated_gradients'?
    """
    names = sorted(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    place = f" in {where}" if where else ""
    if near:
        hint = f"did you mean '{folded[near[0]]}'?"
    else:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        hint = f"choose one of {shown or '(none)'}."
    return UserError(f"There is no {kind} '{name}'{place}: {hint}")
