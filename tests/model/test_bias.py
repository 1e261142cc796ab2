"""A trained model whose one class is pushed down: evaluation and gate see it, and name the class."""

import re
from pathlib import Path

import torch

from tests.unit.stages.corners import TEXT, World, good
from visionloop.project import Project, parse_project
from visionloop.records import GateDecision
from visionloop.stages import gate
from visionloop.training.model import from_bytes, to_bytes

SCENARIOS = """\
    - {name: each-class, metric: worst_class_recall, severity: major, at_least: 0.6}
    - {name: bottom-left, severity: critical, where: {label: bottom-left}, at_least: 0.6, min_samples: 20}
    - {name: top-left, severity: critical, where: {label: top-left}, at_least: 0.6, min_samples: 20}
"""
PUSHED_DOWN = 2
"""The class `bottom-left`."""


def project() -> Project:
    """With a scenario over the worst class, and two over a class each, but none over all: a bias hides in those."""
    beginning, _, rest = TEXT.partition("    - {name: overall")
    return parse_project(beginning + SCENARIOS + rest[rest.index("packaging:") :], Path("project.yaml"))


def biased(weights: bytes) -> bytes:
    """The same weights with one class's logits lowered."""
    model = from_bytes(weights)
    [bias] = [value for name, value in model.named_parameters() if name.endswith("bias") and value.shape == (4,)]
    with torch.no_grad():
        bias[PUSHED_DOWN] -= 30
    return to_bytes(model)


def judged(world: World, weights: bytes, name: str) -> GateDecision:
    """Evaluated and decided about by the stages."""
    run = world.training_run(world.snapshot(name), weights, name)
    evaluation = world.evaluation(run, project())
    return gate.run(project(), gate.Inputs(evaluation=world.stores.ledger.uri(evaluation)), world.stores)


def test_a_model_that_is_biased_against_one_class_does_not_pass_the_gate(tmp_path: Path) -> None:
    decision = judged(World(tmp_path), biased(good()), "biased")
    assert decision.outcome == "rejected"
    says = "; ".join(decision.reasons)
    assert re.search(r"critical scenario bottom-left failed: accuracy 0.0000, at least 0.6000 asked", says)
    assert re.search(r"scenario each-class failed: worst_class_recall \(bottom-left\) 0.0000, at least 0.6000", says)
    assert "top-left" not in says


def test_the_same_model_without_the_bias_does(tmp_path: Path) -> None:
    assert judged(World(tmp_path), good(), "honest").outcome == "passed"
