"""A complete directory of sequences flows in; what it holds, and what was left out and why, flows out in words."""

from __future__ import annotations

from collections import Counter

from whenwhy.events.sequence_directory import REPORT, VOCABULARY
from whenwhy.shards import Json, StageDirectory

#: Names that a sentence shows of many.
SHOWN = 5

#: What a summary counts as left out, in words.
LEFT_OUT = {
    "n_unknown": "values that the vocabulary lacks",
    "n_truncated": "values beyond the most recent steps",
    "n_too_old": "events before the history that was asked for",
    "n_repeated": "values repeated within a step",
}


def totals(stage: StageDirectory) -> Counter[str]:
    """The shards' counts, added."""
    told: Counter[str] = Counter()
    for shard in stage.shards:
        told.update(stage.entry(shard).summary)
    return told


def prepared_sentence(stage: StageDirectory) -> str:
    """What the directory holds, and what was left out, in one sentence for people."""
    told = totals(stage)
    features = stage.entry(VOCABULARY).files[VOCABULARY]["rows"] - 1
    derived = f" and {told['n_derived']:,} that follow from them" if told["n_derived"] else ""
    left_out = [f"{told[name]:,} {words}" for name, words in LEFT_OUT.items() if told[name]]
    return (
        f"{told['n_predictions']:,} predictions, {told['n_events']:,} events{derived} in {told['n_steps']:,} steps, "
        f"{told['n_static']:,} static values, {features:,} feature values; left out "
        f"{', '.join(left_out) or 'nothing'}"
    )


def prepared_notes(stage: StageDirectory) -> list[str]:
    """What a user should know of the data, a line each."""
    told = totals(stage)
    lines = []
    names = [REPORT, *(f"{REPORT}-g{number}" for number in range(1, len(stage.generations) + 1))]
    for name in names:
        lines += _lines_of(stage.entry(name).summary, stage)
    if told["n_truncated_predictions"]:
        lines.append(
            f"{told['n_truncated_predictions']:,} predictions have more than {stage.settings['max_steps']:,} steps; older ones are left out."
        )
    if told["n_without_events"]:
        lines.append(f"{told['n_without_events']:,} predictions have no dated event.")
    if stage.settings["anchor"] != "prediction" and told["n_without_anchor"]:
        lines.append(
            f"{told['n_without_anchor']:,} predictions have no anchor '{stage.settings['anchor']}'; their steps count back from the prediction."
        )
    return lines


def _lines_of(report: Json, stage: StageDirectory) -> list[str]:
    lines = [
        f"{found['file']}: {'' if found['count'] is None else format(found['count'], ',') + ' '}{found['what']}"
        + (f" ({found['repair']})" if report["repaired"] and found["repair"] else "")
        for found in report["findings"][:SHOWN]
    ]
    if len(report["findings"]) > SHOWN:
        lines.append(f"... and {len(report['findings']) - SHOWN:,} findings more in the entry '{REPORT}'.")
    undated = sorted({told["code"] for told in report["undated"]} - {"AGE"})
    if undated:
        lines.append(
            f"{_named(undated, 'undated code')} may know the future, since nothing says when they were recorded: "
            "check them, and leave them out by --without if they do."
        )
    if report["unknown"]:
        missing = sum(report["unknown"].values())
        lines.append(f"{missing:,} events have {_named(list(report['unknown']), 'code')} that the vocabulary lacks.")
    notes = report["notes"]
    if notes["tied"]:
        lines.append(
            f"{_named(notes['tied'], 'code')} have fewer than {stage.settings['bins']} bins, since values tie: equal edges are merged."
        )
    if notes["rare_codes"]:
        groups = len(set(notes["rare_codes"].values()))
        lines.append(
            f"{len(notes['rare_codes']):,} codes of fewer than {stage.settings['rare_below']} training patients are "
            f"folded into {groups:,} rare ones."
        )
    if notes["rare_bins"]:
        lines.append(
            f"{notes['rare_bins']:,} bins of fewer than {stage.settings['rare_below']} training patients joined a neighbour."
        )
    return lines


def _named(names: list[str], what: str) -> str:
    """How many there are, and the first of them.

    Example:
        >>> _named(["GENDER//F", "GENDER//M"], "undated code")
        '2 undated codes (GENDER//F, GENDER//M)'
    """
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'} ({shown})"
