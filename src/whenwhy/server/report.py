"""A published store flows in, one file of its main views flows out: for those who cannot run a server."""

from __future__ import annotations

import html
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources
from bokeh.themes import Theme
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from whenwhy.errors import UserError, unknown_name
from whenwhy.locations import replace as put_file
from whenwhy.server.answers import Answers
from whenwhy.server.charts import TimeFrame
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort
from whenwhy.server.labels import NOT_A_CAUSE, capitalised, class_words
from whenwhy.server.markup import words
from whenwhy.server.state import State, default_state
from whenwhy.server.view import Texts, View
from whenwhy.server.views import (
    About,
    AtRisk,
    Completeness,
    Confusion,
    DataQuality,
    Differences,
    HeatMap,
    Leaks,
    Ranking,
    Sparklines,
    Timeline,
    ValueEffect,
)
from whenwhy.shipped import shipped
from whenwhy.store import open_store

#: So many features are shown where none is named.
FEATURES = 6

#: A longer file takes browsers long to open.
MOST_FEATURES = 40


@dataclass(frozen=True)
class Section:
    """A part of the report: its title, its places' texts, and the names of its charts."""

    anchor: str
    title: str
    texts: Texts
    charts: tuple[str, ...]


def write_report(
    store_path: Path,
    out: Path,
    *,
    features: Sequence[str] = (),
    class_label: str = "all",
    stratum: str = "all",
    split: str | None = None,
    run: str | None = None,
    access_log: Path | None = None,
) -> int:
    """How many features the file tells of; it is written, holds all that it needs, and nothing that viewers may not see.

    Args:
        store_path: a published store.
        out: the HTML file, replaced if it is there.
        features: codes; none: those that carry most.
        class_label, stratum, split, run: the cohort; by default everybody held out, of the first run.
        access_log: where what is asked is written down; None: in the store.

    Raises:
        UserError: no store, a name that it does not know, or a file that cannot be written.

    Example: `write_report(Path("demo/store"), Path("report.html"))`
    """
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: give --out a file in one that is there.")
    store = open_store(store_path, "viewer", access_log=access_log)
    try:
        with ThreadPoolExecutor(1) as pool:
            answers = Answers(store, pool)
            choices = choices_of(answers, "viewer")
            state = _state(choices, run, split, class_label, stratum)
            ranking = Ranking(choices)
            about = About(choices, store.version.name[:8])
            head, first = _shown(about, answers, state), _shown(ranking, answers, state)
            _shown(Sparklines(ranking), answers, state)
            chosen = _features(features, choices, state, list(ranking.source.data["code"]))
            sections = [Section("ranking", "", {**head, **first}, ("ranking",))]
            charts: dict[str, Model] = {"ranking": ranking.charts["ranking"]}
            sections += _of_run(state, answers, choices, charts)
            for number, code in enumerate(chosen):
                sections.append(_of_feature(number, replace(state, feature=code), answers, choices, charts))
    finally:
        store.close()
    folder = shipped("dashboards")
    script, places = components(charts, theme=Theme(folder / "theme.yaml"))
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined
    ).get_template("report.html")
    page = template.render(
        title=f"{capitalised(str(choices.runs[state.run]['outcome']))} · whenwhy",
        not_a_cause=NOT_A_CAUSE,
        version=store.version.name,
        written=datetime.now(UTC).strftime("%Y-%m-%d"),
        sections=sections,
        places=places,
        script=script,
        bokeh=Resources(mode="inline", components=["bokeh"]).render(),
    )
    try:
        put_file(out, page.encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give --out another file.") from None
    return len(chosen)


def _state(choices: Choices, run: str | None, split: str | None, class_label: str, stratum: str) -> State:
    if run is not None and run not in choices.runs:
        raise unknown_name("run", run, choices.runs)
    state = default_state(choices, run)
    offered = choices.offered[state.run]
    for kind, name, known in (
        ("split", split or state.split, offered.splits),
        ("class", class_label, offered.classes),
        ("stratum", stratum, offered.strata),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    return replace(state, split=split or state.split, cohort=Cohort(class_label, stratum))


def _features(asked: Sequence[str], choices: Choices, state: State, ranked: list[str]) -> list[str]:
    known = choices.offered[state.run].features
    for code in asked:
        if code not in known:
            raise unknown_name("feature", code, known)
    if len(asked) > MOST_FEATURES:
        raise UserError(f"A report tells of {MOST_FEATURES} features at most, not of {len(asked)}: name fewer.")
    return list(dict.fromkeys(asked)) or ranked[:FEATURES]


def _shown(view: View, answers: Answers, state: State) -> Texts:
    """The texts of a view, whose charts show the state."""
    tables = {name: answers.now(asked) for name, asked in view.questions(state).items()}
    return {f"{view.name}_words": "", **view.put(view.read(state, tables))}


def _of_run(state: State, answers: Answers, choices: Choices, charts: dict[str, Model]) -> list[Section]:
    """Which features differ between classes, how predictions come true, and what to know before believing any of it."""
    classes = choices.offered[state.run].two_classes
    parts: list[tuple[str, State, View]] = [
        ("How often which class is predicted", state, Confusion(choices)),
        ("Whether contributions add up", state, Completeness()),
        ("Records", state, DataQuality(choices)),
        ("Leaks and shortcuts", state, Leaks(choices)),
    ]
    if classes is not None:
        first, second = classes
        both = replace(
            state, cohort=replace(state.cohort, class_label=first), against=replace(state.cohort, class_label=second)
        )
        parts.insert(0, ("What differs between the classes", both, Differences(choices)))
    sections = []
    for title, of, view in parts:
        try:
            texts = _shown(view, answers, of)
        except UserError as error:
            texts = {f"{view.name}_words": words(str(error))}
        names = tuple(name for name, chart in view.charts.items() if chart.visible and f"{view.name}_table" in texts)
        charts.update({name: view.charts[name] for name in names})
        told = {place: texts.get(f"{view.name}_{place}", "") for place in ("heading", "words", "table")}
        if of.reference is not None:
            outcome = str(choices.runs[of.run]["outcome"])
            sides = [class_words(cohort.class_label, outcome) for cohort in (of.cohort, of.reference)]
            told["words"] += (
                f'<p class="quiet">{html.escape(f"The cohort is {sides[0]}, its reference {sides[1]}.")}</p>'
            )
        sections.append(Section(view.name, title, told, names))
    return sections


def _of_feature(number: int, state: State, answers: Answers, choices: Choices, charts: dict[str, Model]) -> Section:
    frame = TimeFrame()
    views: list[View] = [
        HeatMap(choices, frame),
        AtRisk(choices, frame),
        Timeline(choices, frame),
        ValueEffect(choices),
    ]
    texts: Texts = {}
    names = []
    for view in views:
        texts |= _shown(view, answers, state)
        for name, chart in view.charts.items():
            if chart.visible:
                names.append(f"{name}_{number}")
                charts[names[-1]] = chart
    title = choices.offered[state.run].words_of(state.feature)
    return Section(f"feature-{number}", title, texts, tuple(names))
