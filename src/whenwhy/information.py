"""A directory or a register flows in; lines that say what is there flow out: `whenwhy info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from whenwhy.errors import UserError
from whenwhy.events.prepare_report import prepared_notes
from whenwhy.locations import is_remote, location
from whenwhy.shards import StageDirectory

if TYPE_CHECKING:
    from whenwhy.attribution import Method

REGISTERS = ("methods", "queries", "sources")


def information(what: str) -> list[str]:
    """What a directory holds, or one line for each method, query or source.

    Example:
        >>> [line for line in information("methods") if line.startswith("gradient_times")][0][:48]
        'gradient_times_input: the slope at the record it'
    """
    if what == "methods":
        from whenwhy.attribution import registered_methods

        return [f"{method.name}: {method.describes} ({_facts(method)})" for method in registered_methods().values()]
    if what == "queries":
        from whenwhy.store.queries import named_queries

        return [f"{query.name}({', '.join(query.parameters)}): {query.purpose}" for query in named_queries().values()]
    if what == "sources":
        from whenwhy.events.sources import registered_sources

        return [f"{source.name}: {source.describes}" for source in registered_sources().values()]
    path = location(what)
    if is_remote(path):
        return _stage(StageDirectory.open(path))
    if (path / "CURRENT").exists():
        from whenwhy.store.contents import store_lines

        return store_lines(path)
    if (path / "metadata" / "dataset.json").exists():
        return _meds(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a directory, or one of {', '.join(REGISTERS)}.")
    return _stage(StageDirectory.open(path))


def _stage(stage: StageDirectory) -> list[str]:
    finished = len(stage.needs) - len(stage.missing())
    lines = [
        f"{stage.path}: written by `whenwhy {stage.manifest['stage']}` {stage.manifest['code_version']}",
        f"run id: {stage.run_id}",
        f"entries: {finished} of {len(stage.needs)} finished",
    ]
    for name, told in stage.manifest["inputs"].items():
        said = ", ".join(f"{key} {str(value)[:80]}" for key, value in told.items())
        lines.append(f"made from {name}: {said}")
    lines.append("settings: " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in stage.settings.items()))
    if finished == len(stage.needs):
        totals: dict[str, int] = {}
        for name in stage.shards:
            for key, value in stage.entry(name).summary.items():
                if key.startswith("n_") and isinstance(value, int):
                    totals[key] = totals.get(key, 0) + value
        if totals:
            lines.append("totals: " + ", ".join(f"{key} {value:,}" for key, value in totals.items()))
        if stage.manifest["stage"] == "prepare":
            lines += prepared_notes(stage)
        lines.append(f"content: sha256 {stage.content_sha256()}")
    return lines


def _facts(method: Method) -> str:
    """Family, what must run first, and the options with their defaults."""
    options = ", ".join(f"{name}={value}" for name, value in method.options.items())
    facts = [
        method.family,
        *(["fitted once before"] if method.fit else []),
        *([f"options: {options}"] if options else []),
    ]
    return "; ".join(facts)


def _meds(path: Path) -> list[str]:
    from whenwhy.events.meds_dataset import open_meds

    dataset = open_meds(path)
    about = json.loads((path / "metadata" / "dataset.json").read_text())
    splits = "none" if dataset.splits is None else f"{dataset.splits.num_rows:,} patients"
    return [
        f"{path}: the MEDS data set {about.get('dataset_name', '(unnamed)')}",
        f"files: {len(dataset.files)}; codes described: {dataset.described().num_rows:,}; splits: {splits}",
        *(f"labels: {labels}" for labels in sorted((path / "labels").glob("*"))),
    ]
