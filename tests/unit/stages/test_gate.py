"""The gate's stage: one decision for an evaluation and a policy, written down with its reasons."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.stages.corners import World, a_project
from visionloop.errors import IntegrityError, NotFound
from visionloop.project import Project
from visionloop.records import Evaluation, GateDecision, Interval, ScenarioResult
from visionloop.stages import gate


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def evaluated(world: World, value: float = 0.9) -> str:
    """URI of an evaluation whose one critical scenario asks 0.8."""
    result = ScenarioResult(
        name="overall",
        metric="accuracy",
        severity="critical",
        bar=0.8,
        bar_kind="at_least",
        challenger=Interval(value=value, low=value - 0.02, high=value + 0.02, n=200),
        champion=Interval(value=0.85, low=0.83, high=0.87, n=200),
        difference=Interval(value=value - 0.85, low=value - 0.87, high=value - 0.83, n=200),
        outcome="passed" if value >= 0.8 else "failed",
    )
    record = Evaluation(
        id=f"e{round(100 * value)}",
        project="corners",
        seed=11,
        snapshot="s",
        training_run="t",
        champion="c",
        test_samples=200,
        scenarios=[result],
        page_uri="p",
    )
    return world.stores.ledger.uri(world.stores.ledger.put(record))


def decided(world: World, uri: str, project: Project | None = None) -> GateDecision:
    return gate.run(project or world.project, gate.Inputs(evaluation=uri), world.connect())


def test_a_decision_carries_reasons_and_lineage(world: World) -> None:
    uri = evaluated(world)
    found = decided(world, uri)
    body = world.stores.objects.get(world.stores.objects.key(uri))
    assert (found.outcome, found.evaluation, found.seed) == ("passed", uri, 11)
    assert found.inputs == {"evaluation": uri}
    assert found.input_digests == {"evaluation": hashlib.sha256(body).hexdigest()}
    assert found.config_digest == world.project.config_digest("gate")
    assert "better than the champion in overall: accuracy +0.0500" in found.reasons[0]
    assert world.stores.ledger.all(GateDecision, "corners") == [found]


def test_a_rejection_is_a_record_and_no_fault(world: World) -> None:
    found = decided(world, evaluated(world, 0.7))
    assert found.outcome == "rejected"
    assert found.reasons[0] == "critical scenario overall failed: accuracy 0.7000, at least 0.8000 asked"


def test_run_again_it_is_the_same_decision(world: World) -> None:
    uri = evaluated(world)
    assert decided(world, uri) == decided(world, uri)
    assert len(world.stores.ledger.all(GateDecision, "corners")) == 1


def test_another_policy_decides_anew_and_another_suite_does_not(world: World) -> None:
    uri = evaluated(world, 0.85)
    strict = decided(world, uri)
    relaxed = decided(world, uri, a_project("release:", "gate: {must_improve: false}\nrelease:"))
    assert (strict.outcome, relaxed.outcome) == ("rejected", "passed")
    assert decided(world, uri, a_project("at_least: 0.8", "at_least: 0.1")) == strict
    assert len(world.stores.ledger.all(GateDecision, "corners")) == 2


def test_an_evaluation_that_is_none(world: World) -> None:
    with pytest.raises(NotFound):
        decided(world, world.stores.objects.uri("corners/records/evaluation/none.json"))
    key = "corners/records/evaluation/e1.json"
    world.stores.objects.put(key, b'{"id": "e1"}')
    with pytest.raises(IntegrityError, match="no evaluation record"):
        decided(world, world.stores.objects.uri(key))


def test_the_gate_is_light_enough_for_airflows_worker() -> None:
    """It runs there: none of the heavy libraries may be imported by it."""
    heavy = ("torch", "mlflow", "lance", "pyarrow", "onnx", "onnxruntime", "evidently", "great_expectations", "pandas")
    code = f"import sys, visionloop.stages.gate; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
