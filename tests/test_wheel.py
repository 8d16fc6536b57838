"""The wheel carries queries and dashboards, and works where the repository is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from whenwhy.shipped import shipped

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True, capture_output=True, text=True)
    [file] = folder.glob("*.whl")
    return file


def test_every_query_and_page_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("queries", "dashboards"):
        files = [path for path in (REPOSITORY / folder).iterdir() if path.is_file()]
        assert files
        assert all(f"whenwhy/{folder}/{path.name}" in inside for path in files)
    assert not any(name.startswith(("tests/", "whenwhy/tests")) for name in inside)
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_the_wheel_works_without_the_repository(wheel: Path, small_run, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "import whenwhy; from whenwhy.shipped import shipped; from whenwhy.store import open_store\n"
        "assert Path(whenwhy.__file__).is_relative_to(sys.argv[1]), whenwhy.__file__\n"
        "assert shipped('queries').is_relative_to(sys.argv[1])\n"
        "from whenwhy.server.pages import pages\n"
        "print(sorted(pages()))\n"
        "print(open_store(Path(sys.argv[2])).ask('top_features').num_rows)"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "site"), str(small_run.store)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    pages, rows = told.stdout.splitlines()
    assert "overview" in pages
    assert int(rows) > 0


def test_the_editable_install_reads_the_repository() -> None:
    assert shipped("queries") == REPOSITORY / "queries"
    assert shipped("dashboards") == REPOSITORY / "dashboards"
