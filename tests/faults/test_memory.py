"""Memory really limited: a batch that does not fit is taken in halves, and the rows are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from conftest import INLINE, SmallRun
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import ROWS
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory

#: `attribute` in this process, once it has only so many bytes of memory left.
LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.engine import Workers
from whenwhy.errors import UserError

sequences, model, out, left, options = sys.argv[1:]
torch.ones(64, 64) @ torch.ones(64, 64)
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
most = held + int(left)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    stage = attribute_shards(
        Path(sequences), Path(model), Path(out), AttributeSettings(**json.loads(options)), Workers(inline=True)
    )
except UserError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps([stage.entry(name).summary["n_halved"] for name in stage.shards]))
"""


def test_a_batch_that_does_not_fit_is_taken_in_halves(tmp_path: Path, small_run: SmallRun) -> None:
    """A wide model on all records at once, in ever less memory, until they no longer fit together."""
    sequences, model = tmp_path / "sequences", tmp_path / "model"
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=10_000)
    prepare(small_run.meds, small_run.labels, sequences, settings, INLINE)
    train(sequences, model, TrainSettings(hidden=512, epochs=1), INLINE)
    options = {"method": "gradient_times_input", "batch_patients": 10_000, "batch_steps": 1 << 20}
    whole = attribute_shards(sequences, model, tmp_path / "whole", AttributeSettings(**options), INLINE)
    halved, told = None, None
    for megabytes in range(400, 40, -40):
        out = tmp_path / f"limited-{megabytes}"
        told = subprocess.run(
            [sys.executable, "-c", LIMITED, str(sequences), str(model), str(out), str(megabytes << 20), json.dumps(options)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else None
        if isinstance(answer, list) and sum(answer):
            halved = StageDirectory.open(out)
            break
    assert halved is not None, told
    [name] = whole.shards
    expected, found = whole.read(name, ROWS), halved.read(name, ROWS)
    assert found.drop_columns(["attribution"]).equals(expected.drop_columns(["attribution"]))
    np.testing.assert_allclose(found["attribution"].to_numpy(), expected["attribution"].to_numpy(), atol=1e-5)
