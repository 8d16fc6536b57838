"""Methods made wrong on purpose, and the test that notices each: a suite in which one of them passes is none.

A mutant is a change of one place of a file's text, applied in memory while the module is imported. `survivors` runs
the test that it names in a process of its own, and the test must fail: by an assertion, not by a crash. This
module imports nothing of the package, so that every process imports it anew, changed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PACKAGE = "whenwhy.attribution"
ROOT = TESTS.parent / "src" / "whenwhy" / "attribution"

#: What a test raises that has found something wrong; anything else is a crash, which proves nothing.
FINDINGS = ("AssertionError", "UserError", "Failed", "FlakyFailure")


@dataclass(frozen=True)
class Mutant:
    """A change of one place.

    Attributes:
        of: the method, or the room that several share.
        what: what is wrong now.
        module: below `whenwhy.attribution`.
        old, new: the text, which stands there exactly once, and what comes in its place; "" is put behind all.
        test: below tests/, what must fail.
    """

    of: str
    what: str
    module: str
    old: str
    new: str
    test: str

    @property
    def file(self) -> Path:
        """Where the text stands."""
        return ROOT.joinpath(*self.module.split(".")).with_suffix(".py")

    @property
    def text(self) -> str:
        """The file's text, changed.

        Raises:
            LookupError: the text is not there once: the mutant must be rewritten with what it changes.
        """
        text = self.file.read_text()
        if not self.old:
            return text + self.new
        if text.count(self.old) != 1:
            raise LookupError(f"{self.module} has {text.count(self.old)} times what the mutant changes: {self.old!r}")
        return text.replace(self.old, self.new)


def swapped(method: str, by: str, test: str) -> Mutant:
    """The method with the contributions of another: all else that it says is its own."""
    new = f'''

import functools as _functools
import dataclasses as _dataclasses
from {PACKAGE} import registry as _registry
from {PACKAGE}.methods.{by} import {by} as _other

@_functools.wraps({method})
def _swapped(question, **options):
    return _dataclasses.replace({method}(question, **options), contributions=_other(question).contributions)

_registry._METHODS["{method}"] = _dataclasses.replace(_registry._METHODS["{method}"], compute=_swapped)
'''
    return Mutant(method, f"the contributions of {by}", f"methods.{method}", "", new, test)


class _Changed(importlib.machinery.SourceFileLoader):
    """Imports one module from a text; asked before all other finders."""

    def __init__(self, name: str, file: str, text: str) -> None:
        super().__init__(name, file)
        self.changed = text

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> Any:
        return compile(self.changed, self.path, "exec")


def survivors(mutants: Iterable[Mutant], *, together: bool = False) -> dict[Mutant, str]:
    """The mutants whose test did not fail, each with what happened instead.

    Args:
        together: all in one process, which is quicker; of mutants that do not reach each other.
    """
    asked = list(mutants)
    told = [asdict(one) | {"name": f"{PACKAGE}.{one.module}", "file": str(one.file), "text": one.text} for one in asked]
    environment = {name: of for name, of in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, __file__], input=json.dumps([told] if together else [[one] for one in told]),
        capture_output=True, text=True, check=False, cwd=TESTS.parent,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT.parents[1]), str(TESTS)])},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    answers = [why for line in run.stdout.splitlines() for why in json.loads(line)]
    assert len(answers) == len(asked), run.stderr[-2000:]
    return {one: why for one, why in zip(asked, answers, strict=True) if why}


def _outcomes(group: list[dict[str, str]]) -> list[str]:
    """Why each mutant of a group is not noticed, when all of them are there; "" for one that is. In this process."""
    import hypothesis
    import pytest

    failed: list[tuple[str, str]] = []

    class Watching:
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
            answer = yield
            if answer.get_result().failed:
                failed.append((item.nodeid, call.excinfo.typename if call.excinfo else "nothing"))

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutant", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutant")
    for told in group:
        sys.meta_path.insert(0, _Changed(told["name"], told["file"], told["text"]))  # type: ignore[arg-type]
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "full or not full", "--timeout", "300"]
    first = ["-x"] if len(group) == 1 else []
    status = int(pytest.main([*first, *plain, *(str(TESTS / told["test"]) for told in group)], plugins=[Watching()]))
    return [_why(told, status, failed) for told in group]


def _why(told: dict[str, str], status: int, failed: list[tuple[str, str]]) -> str:
    own = [(node, kind) for node, kind in failed if f"tests/{node}".split("tests/")[-1].startswith(told["test"])]
    if told["name"] not in sys.modules:
        return "its test never imports it"
    if status not in (0, 1):
        return f"its test did not run (status {status})"
    if not own:
        return "it survives: the test passes"
    return "" if any(kind in FINDINGS for _, kind in own) else f"its test crashes by {own[0][1]} in {own[0][0]}"


def _in_a_process_of_its_own(group: list[dict[str, str]]) -> list[str]:
    """What the forked process says; whatever the tests print is dropped."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.write(writing, json.dumps(_outcomes(group)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(told)) if told else ["its process died"] * len(group)


def main() -> None:
    """Answers groups of mutants on standard input, a line each. What all need is imported once, the package never."""
    for name in ("captum.attr", "duckdb", "hypothesis", "numpy", "pandas", "pyarrow.compute", "pyarrow.parquet",
                 "pytest", "safetensors.torch", "scipy.stats", "sklearn.linear_model", "sklearn.metrics", "torch",
                 "typer", "filelock", "yaml", "rich.progress", "dask", "meds"):  # fmt: skip
        importlib.import_module(name)
    for group in json.load(sys.stdin):
        print(json.dumps(_in_a_process_of_its_own(group)), flush=True)


if __name__ == "__main__":
    main()
