"""The report is one file of what viewers may see: its numbers are the store's, and it asks nothing of anybody."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from conftest import Command, SmallRun
from whenwhy.errors import UserError
from whenwhy.server.labels import signed
from whenwhy.server.report import write_report
from whenwhy.store import Store, open_store


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Store:
    """What viewers may see."""
    return open_store(small_run.store, "viewer")


@pytest.fixture(scope="module")
def report(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of the small cohort."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(small_run.store, file) == 6
    return file.read_text()


def columns(report: str, name: str) -> list[list[float]]:
    """Every column of this name that any chart of the report holds."""
    (told,) = re.findall(r"const docs_json = ('.*?'|\{.*?\});\n", report)
    text = told.strip("'").encode().decode("unicode_escape") if told.startswith("'") else told
    found: list[list[float]] = []

    def walk(part: object) -> None:
        if isinstance(part, list):
            if len(part) == 2 and part[0] == name and isinstance(part[1], list):
                found.append(part[1])
            for one in part:
                walk(one)
        elif isinstance(part, dict):
            for one in part.values():
                walk(one)

    walk(json.loads(text))
    return found


def test_a_report_says_what_the_store_answers(report: str, store: Store) -> None:
    """Ranking, counts, and the cells of each feature."""
    ranked = store.ask("top_features").to_pylist()
    for row in ranked:
        assert html.escape(row["code"]) in report
    everybody = store.ask("number_at_risk").to_pylist()[-1]
    assert f"{everybody['n_patients']:,} patients" in report
    assert "contribution to this model's prediction, not a cause" in html.unescape(report)
    assert store.version.name in report
    means = [mean for column in columns(report, "mean") for mean in column]
    for row in ranked[:6]:
        for query in ("feature_heatmap", "feature_timeline", "value_effect"):
            for mean in store.ask(query, feature=row["code"])["mean_per_event"].to_pylist():
                assert any(mean == pytest.approx(one, rel=1e-12) for one in means), (row["code"], query)


def test_a_report_says_what_differs_and_what_to_know_first(report: str, store: Store) -> None:
    """Differences of both classes, the confusion table and completeness; it says who is compared."""
    told = html.unescape(report)
    assert "The cohort is the outcome: true, its reference the outcome: false." in told
    for row in store.ask("cohort_comparison", class_a="true", class_b="false").to_pylist():
        assert signed(row["difference"]) in told
    for row in store.ask("confusion").to_pylist():
        assert f"{row['n_predictions']:,}" in told
    for anchor in ("differences", "confusion", "completeness", "data_quality", "leaks"):
        assert f'id="{anchor}"' in report


def test_a_report_holds_no_small_count_and_names_nobody(report: str) -> None:
    """Not in what its charts hold either."""
    counts = [n for name in ("n_patients", "n_predictions") for column in columns(report, name) for n in column]
    assert len(counts) > 50
    assert min(counts) >= 11
    assert "subject_id" not in report


def test_a_report_loads_nothing(report: str) -> None:
    """Scripts, styles and pictures are inside."""
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", report)
    assert "default-src 'none'" in report
    assert len(report) < 3_000_000


def test_the_command_writes_a_report_of_named_features(whenwhy: Command, small_run: SmallRun, tmp_path: Path) -> None:
    """And of a class and a stratum; the sentence says where."""
    file = tmp_path / "r.html"
    status, said, _ = whenwhy("report", small_run.store, "--out", file, "--feature", "lab", "--class", "true")
    assert (status, said) == (0, f"Wrote a report of 1 feature to {file}.\n")
    assert 'id="feature-0"' in file.read_text()
    assert 'id="feature-1"' not in file.read_text()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"features": ["labb"]}, "There is no feature 'labb': did you mean 'lab'?"),
        ({"class_label": "maybe"}, "There is no class 'maybe'"),
        ({"stratum": "sex=X"}, "There is no stratum 'sex=X'"),
        ({"split": "x"}, "There is no split 'x'"),
        ({"run": "x"}, "There is no run 'x'"),
    ],
)
def test_what_a_report_cannot_tell_is_a_sentence(
    small_run: SmallRun, tmp_path: Path, asked: dict[str, object], said: str
) -> None:
    """Nothing is written."""
    file = tmp_path / "r.html"
    with pytest.raises(UserError, match=re.escape(said)):
        write_report(small_run.store, file, **asked)  # type: ignore[arg-type]
    assert not file.exists()


def test_a_report_needs_a_folder_and_a_store(small_run: SmallRun, tmp_path: Path) -> None:
    """One sentence each."""
    with pytest.raises(UserError, match="is no folder"):
        write_report(small_run.store, tmp_path / "nowhere" / "r.html")
    with pytest.raises(UserError, match="is no store"):
        write_report(tmp_path, tmp_path / "r.html")
