"""The manifests for KubeRay: fields that exist, what they promise of safety, and an entrypoint that really runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from conftest import SmallRun
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())

#: What only the pods of the job have.
OURS = {"app.kubernetes.io/part-of": "whenwhy"}


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def complaints(document: dict[str, Any]) -> list[str]:
    """What the fields' names and types have against an object."""
    checker = jsonschema.Draft202012Validator(SCHEMA | {"$ref": f"#/$defs/{document['kind']}"})
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(document)]


@pytest.fixture
def job() -> dict[str, Any]:
    """The RayJob."""
    [found] = documents("rayjob.yaml")
    return found


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of the submitter, the head and the workers."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]


def environment(template: dict[str, Any]) -> dict[str, str]:
    """The variables of a pod's container."""
    return {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_manifests_have_fields_that_exist(name: str) -> None:
    assert [complaints(document) for document in documents(name)] == [[]] * len(documents(name))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all names in nested mappings."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield (*path, key)
        yield from places(inner, (*path, key))


def test_a_typo_is_caught_wherever_it_is(job: dict[str, Any]) -> None:
    """Each name of the manifest in turn with a letter too many."""
    free = ("labels", "rayStartParams", "requests", "limits")  # whose names are the user's
    tried = 0
    for *path, name in places(job):
        if path and path[-1] in free:
            continue
        wrong = deepcopy(job)
        inside = wrong
        for step in path:
            inside = inside[step]
        inside[f"{name}s"] = inside.pop(name)
        if not path and name == "kind":
            with pytest.raises(KeyError):
                complaints(wrong)
        else:
            assert complaints(wrong), [*path, name]
        tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backoffLimit"), "3"),
        (("spec", "activeDeadlineSeconds"), 0),
        (("spec", "submissionMode"), "K8SJobMode"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "submitterPodTemplate", "spec", "restartPolicy"), "never"),
    ],
)
def test_a_wrong_value_is_caught(job: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *way, name = path
    inside = job
    for step in way:
        inside = inside[step]
    inside[name] = value
    [complaint] = complaints(job)
    assert name in complaint


def test_the_cluster_asks_for_a_token_and_no_secret_is_written_down(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for name in os.listdir(FOLDER):
        assert not re.search(r"RAY_AUTH_TOKEN\b.*[=:]\s*\w|stringData|password", (FOLDER / name).read_text()), name
    assert not [name for template in templates(job) for name in environment(template) if "AUTH" in name]


def test_pods_have_no_more_rights_than_they_need(job: dict[str, Any]) -> None:
    for template in templates(job):
        pod, [container] = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        # What runs out of bounds is ended, not its neighbours.
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    _, head, *workers = templates(job)
    for template in (head, *workers):
        mounts = {one["name"]: one for one in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["inputs"]["readOnly"]
    claimed = {document["metadata"]["name"] for document in documents("volumes.yaml")}
    asked = {
        volume["persistentVolumeClaim"]["claimName"]
        for template in templates(job)
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert asked == claimed


def test_a_failed_attempt_is_followed_by_another_and_all_of_it_ends(job: dict[str, Any]) -> None:
    asked = job["spec"]
    assert 0 < asked["backoffLimit"] < 10
    assert asked["activeDeadlineSeconds"] > 0
    assert asked["shutdownAfterJobFinishes"] is True
    # A head that were started again in its pod would be another cluster under the name of the first.
    assert {template["spec"]["restartPolicy"] for template in templates(job)} == {"Never"}


def test_only_pods_of_the_job_and_the_operator_are_admitted(job: dict[str, Any]) -> None:
    [policy] = documents("network.yaml")
    asked = policy["spec"]
    assert asked["podSelector"] == {"matchLabels": OURS}
    assert all(template["metadata"]["labels"].items() >= OURS.items() for template in templates(job))
    assert asked["policyTypes"] == ["Ingress", "Egress"]
    among, operator = asked["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": OURS}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
    outside = [rule for rule in asked["egress"] if rule != {"to": [{"podSelector": {"matchLabels": OURS}}]}]
    assert [{port["port"] for port in rule["ports"]} for rule in outside] == [{53}]


def test_versions_and_names_agree(job: dict[str, Any]) -> None:
    [version] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f"FROM rayproject/ray:{version}-py311\n" in dockerfile
    assert len({template["spec"]["containers"][0]["image"] for template in templates(job)}) == 1
    assert job["spec"]["entrypoint"] == "bash /opt/whenwhy/job.sh"
    assert re.search(r"^COPY .* cluster/kuberay/job\.sh /opt/whenwhy/job\.sh$", dockerfile, re.MULTILINE)


#: A Ray cluster of its own network, processes and temporary folder, with the head's variables; then the entrypoint.
CLUSTER = """
set -euo pipefail
ip link set lo up
mkdir -p "$FOLDER/ray" /tmp/ray
mount --bind "$FOLDER/ray" /tmp/ray
ray start --head --node-ip-address=127.0.0.1 --num-cpus=2 --object-store-memory=100000000 >"$FOLDER/started"
bash "$ENTRYPOINT"
"""


@pytest.fixture
def in_a_cluster(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the entrypoint in a Ray cluster."""
    alone = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("a cluster apart is in namespaces, which only root may make")

    def run(**variables: object) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        given = {name: str(value) for name, value in variables.items()}
        given |= {"PATH": path, "FOLDER": str(tmp_path), "ENTRYPOINT": str(FOLDER / "job.sh")}
        return subprocess.run(
            [*alone, "bash", "-c", CLUSTER], capture_output=True, text=True, env=os.environ | given, check=False
        )

    return run


def test_the_entrypoint_goes_from_sequences_to_a_published_store(
    in_a_cluster: Callable[..., subprocess.CompletedProcess[str]],
    job: dict[str, Any],
    small_run: SmallRun,
    tmp_path: Path,
) -> None:
    """With the variables of the manifest's head, but for places that are here."""
    places = {
        "SEQ": small_run.sequences,
        "MODEL": small_run.model,
        "ATTR": tmp_path / "attr",
        "STORE": tmp_path / "store",
    }
    told = in_a_cluster(
        **environment(templates(job)[1]) | places, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of-this-test-alone" * 2
    )
    assert told.returncode == 0, told.stdout + told.stderr
    attributed = StageDirectory.open(tmp_path / "attr")
    assert attributed.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    [call] = json.loads((tmp_path / "attr" / "run.json").read_text())["calls"]
    assert call["passes"][0]["workers"].endswith("Ray actors")
    assert open_store(tmp_path / "store").sql("select count(*) from rows").column(0).to_pylist()[0] > 0


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "x" * 32}])
def test_a_cluster_without_a_token_is_refused(variables: dict[str, str], tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("SEQ", "MODEL", "ATTR", "STORE")}
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    told = subprocess.run(
        ["bash", str(FOLDER / "job.sh")], capture_output=True, text=True, env=own | places | variables, check=False
    )
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "no token" in told.stderr
