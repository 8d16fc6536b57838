"""What a person did on a page flows in, the state that follows flows out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from whenwhy.errors import UserError, unknown_name
from whenwhy.server import patient
from whenwhy.server.cohort import Cohort, members_sql
from whenwhy.server.labels import for_analysts
from whenwhy.server.outcomes import predicted_text
from whenwhy.server.saved_cohorts import DRAWN
from whenwhy.server.state import COLORS, LAGS, ORDERS, PARTS, State, default_state, hours_of_panel

if TYPE_CHECKING:
    from whenwhy.server.session import Session

Told = Mapping[str, Any]


def acted(session: Session, action: str, told: Told) -> State:
    """The state after an action.

    Raises:
        UserError: no such action, or one that cannot be done.
    """
    if action not in ACTIONS:
        raise unknown_name("action", str(action)[:60], ACTIONS)
    return ACTIONS[action](session, told)


def _choose(session: Session, told: Told) -> State:
    """Another feature, split, class, stratum, order or run, or what is held against them."""
    name, value = str(told["name"]), str(told["value"])
    state = session.state
    offered = session.version.choices.offered[state.run]
    known: dict[str, Any] = {
        "feature": offered.features,
        "other": offered.features,
        "split": offered.splits,
        "class": offered.classes,
        "stratum": offered.strata,
        "order": ORDERS,
        "subgroups": offered.kinds,
        "other_run": session.version.choices.runs,
        "color": COLORS,
        "lag": LAGS,
        "run": session.version.choices.runs,
    }
    if name not in known:
        raise unknown_name("choice", name[:60], known)
    if value not in known[name]:
        raise unknown_name(name, value[:60], known[name])
    if name == "run":
        return _of_run(session, value)
    if name in ("class", "stratum"):
        field = "class_label" if name == "class" else name
        cohort: Any = {field: value}
        return replace(state, cohort=replace(state.cohort, **cohort), selected=None)
    changed: dict[str, Any] = {name: value}
    if name == "feature":
        # What a brush marked is a matter of the feature that it was drawn over.
        changed |= {"selected": None, "other": None}
    return replace(state, **changed)


def _of_run(session: Session, run: str) -> State:
    """Another run may have other codes, classes and strata: what it does not know becomes its default."""
    state, choices = session.state, session.version.choices
    offered, default = choices.offered[run], default_state(choices, run)
    cohort = Cohort(
        state.cohort.class_label if state.cohort.class_label in offered.classes else "all",
        state.cohort.stratum if state.cohort.stratum in offered.strata else "all",
        # A range of values may be another one in the other run, or none.
        tuple(session.condition(condition.text, run) for condition in state.cohort.conditions),
    )
    return replace(
        default,
        split=state.split if state.split in offered.splits else default.split,
        feature=state.feature if state.feature in offered.features else default.feature,
        cohort=cohort,
        panel=state.panel,
        order=state.order,
        min_patients=state.min_patients,
    )


def _add(session: Session, told: Told) -> State:
    """A condition more."""
    state = session.state
    condition = session.condition(str(told["condition"]), state.run)
    return replace(state, cohort=state.cohort.with_condition(condition), selected=None)


def _remove(session: Session, told: Told) -> State:
    """A condition less."""
    state = session.state
    return replace(state, cohort=state.cohort.without_condition(str(told["condition"])), selected=None)


def _clear(session: Session, told: Told) -> State:
    """The default cohort, with the same feature."""
    return session.state.without_filters(session.version.choices)


def _select(session: Session, told: Told) -> State:
    """What a brush marks; nothing, to clear it."""
    text = told["condition"]
    return replace(session.state, selected=None if text is None else session.condition(str(text), session.state.run))


def _keep(session: Session, told: Told) -> State:
    """What is marked becomes a condition."""
    state = session.state
    if state.selected is None:
        raise UserError("Nothing is marked: draw over a chart first.")
    return replace(state, cohort=state.cohort.with_condition(state.selected), selected=None)


def _compare(session: Session, told: Told) -> State:
    """With another cohort: `rest` is everybody else, `all` everybody, `class:NAME`, `stratum:NAME` or `saved:NAME`."""
    state, other = session.state, told["with"]
    if other is None:
        return replace(state, against=None, order="size" if state.order == "difference" else state.order)
    kind, _, name = str(other).partition(":")
    offered = session.version.choices.offered[state.run]
    if kind == "all":
        return replace(state, against=Cohort())
    if kind == "rest":
        if state.cohort == Cohort():
            raise UserError("Nobody is left beside everybody: choose a class, a stratum or a condition first.")
        if not session.version.choices.has_rows:
            raise UserError(for_analysts("Who is left", "Choose a class or a stratum instead."))
        return replace(state, against="rest")
    if kind == "swap" and isinstance(state.against, Cohort):
        return replace(state, cohort=state.against, against=state.cohort)
    if kind == "class" and name in offered.classes:
        return replace(state, against=replace(state.cohort, class_label=name))
    if kind == "stratum" and name in offered.strata:
        return replace(state, against=replace(state.cohort, stratum=name))
    if kind == "classes":
        if offered.two_classes is None:
            raise UserError("There are no two classes with cells that may be shown.")
        first, second = offered.two_classes
        own = replace(state.cohort, class_label=first)
        return replace(state, cohort=own, against=replace(own, class_label=second))
    if kind == "saved":
        return replace(state, against=session.saved.cohort(name))
    raise UserError(f"There is no cohort '{str(other)[:60]}' to compare with: choose one of the list.")


def _pair(session: Session, told: Told) -> State:
    """The cohort with one class or stratum, compared with the same of another."""
    name, values = str(told["name"]), (str(told["first"]), str(told["second"]))
    offered = session.version.choices.offered[session.state.run]
    known = {"class": offered.classes, "stratum": offered.strata}
    if name not in known:
        raise unknown_name("choice", name[:60], known)
    for value in values:
        if value not in known[name]:
            raise unknown_name(name, value[:60], known[name])
    field = "class_label" if name == "class" else name
    both: list[dict[str, Any]] = [{field: value} for value in values]
    first, second = (replace(session.state.cohort, **one) for one in both)
    return replace(session.state, cohort=first, against=second, selected=None)


def _save(session: Session, told: Told) -> State:
    """The cohort gets a name."""
    session.saved.save(str(told["name"]).strip(), session.state.cohort, session.user)
    return _load(session, told)


def _load(session: Session, told: Told) -> State:
    """The cohort of a name."""
    return replace(session.state, cohort=session.saved.cohort(str(told["name"]).strip()), selected=None)


def _forget(session: Session, told: Told) -> State:
    """Nobody has the name any more; viewers forget what they saved themselves."""
    session.saved.forget(str(told["name"]), None if session.version.choices.has_rows else session.user)
    return replace(session.state, cohort=session.state.cohort.without_condition(f"saved:{told['name']}"))


def _narrow(session: Session, told: Told) -> State:
    """The predictions of a class for which this class is predicted, within the stratum and conditions there are."""
    state = session.state
    offered = session.version.choices.offered[state.run]
    label, predicted = str(told["class"]), str(told["predicted"])
    for name in (label, predicted):
        if name not in offered.classes or name == "all":
            raise unknown_name("class", name[:60], offered.classes)
    cohort, stratum = state.cohort.whatever_outcome, f"predicted={predicted}"
    if cohort.stratum == "all":
        if stratum not in offered.strata:
            raise UserError(f"What is predicted as {predicted} has no cell that may be shown: choose another one.")
        return replace(state, cohort=replace(cohort, class_label=label, stratum=stratum), selected=None)
    condition = session.condition(predicted_text(predicted), state.run)
    return replace(state, cohort=replace(cohort, class_label=label).with_condition(condition), selected=None)


def _enter(session: Session, told: Told) -> State:
    """A code group is gone into, or back to."""
    state, group = session.state, str(told["group"])
    above = state.within[: state.within.index(group)] if group in state.within else state.within
    return replace(state, within=(*above, group))


def _leave(session: Session, told: Told) -> State:
    """All code groups are left."""
    return replace(session.state, within=())


def _open(session: Session, told: Told) -> State:
    """A part of the page that takes long is asked for, or closed."""
    part, state = str(told["part"]), session.state
    if part not in PARTS:
        raise unknown_name("part", part[:60], PARTS)
    return replace(state, opened=state.opened | {part} if told["is_open"] else state.opened - {part})


def _lasso(session: Session, told: Told) -> State:
    """What a line was drawn around: the predictions get a name, since an address may not have them."""
    if not session.version.choices.has_rows:
        raise UserError(patient.FOR_ANALYSTS)
    members = {(int(subject), int(microseconds)) for subject, microseconds in told["members"]}
    if not members:
        return replace(session.state, selected=None)
    sql = members_sql(members)
    # The same predictions have the same name, whoever draws around them.
    name = f"{DRAWN}{hashlib.sha256(sql.encode()).hexdigest()[:8]}"
    session.saved.draw(name, sql, session.user)
    return replace(session.state, selected=session.condition(f"saved:{name}", session.state.run))


def _panel(session: Session, told: Told) -> State:
    """The same patients in every bin until so many hours before; whoever there is, where none are told."""
    if not told["hours"]:
        return replace(session.state, panel=None)
    if not session.version.choices.has_rows:
        raise UserError(for_analysts("The same patients in every bin"))
    return replace(session.state, panel=hours_of_panel(str(told["hours"])))


def _of_patient(
    follow: Callable[[patient.Chosen, Told], patient.Chosen],
) -> Callable[[Session, Told], State]:
    """An action on what the session looks at of single patients; the state stays."""

    def act(session: Session, told: Told) -> State:
        if not session.version.choices.has_rows:
            raise UserError(patient.FOR_ANALYSTS)
        session.look(follow(session.chosen, told))
        return session.state

    return act


ACTIONS: Final[Mapping[str, Callable[[Session, Told], State]]] = {
    "choose": _choose,
    "add": _add,
    "remove": _remove,
    "clear": _clear,
    "select": _select,
    "keep": _keep,
    "compare": _compare,
    "pair": _pair,
    "save": _save,
    "load": _load,
    "forget": _forget,
    "panel": _panel,
    "open": _open,
    "lasso": _lasso,
    "patient": _of_patient(patient.looked),
    "list": _of_patient(patient.listed),
    "change": _of_patient(patient.changed),
    "undo": _of_patient(patient.undone),
    "narrow": _narrow,
    "enter": _enter,
    "leave": _leave,
}
