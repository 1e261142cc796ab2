"""Changes: what a model loses against another, by hand; and several models sit the suite on the same corruptions."""

import numpy as np
import pytest

from tests.unit.evaluation.contests import CHALLENGER, CHAMPION, Reader, contest, scenario
from visionloop.evaluation.changes import changes, sit
from visionloop.evaluation.suite import run_suite


def test_the_difference_is_challenger_minus_champion() -> None:
    held = contest(100, wrong=range(8), champion_wrong=range(3))
    (found,) = changes([scenario(severity="critical")], held)
    assert (found.scenario, found.severity, found.metric) == ("all", "critical", "accuracy")
    assert found.difference.value == pytest.approx(-0.05) and found.difference.n == 100
    assert found.difference.low < -0.05 < found.difference.high and found.judged


def test_a_slice_is_its_own_samples() -> None:
    cameras = ["one"] * 60 + ["two"] * 40
    held = contest(100, wrong=range(60, 64), champion_wrong=[], cameras=cameras)
    found = changes([scenario(where={"camera": name}) for name in ("one", "two", "three")], held)
    assert [change.difference.n for change in found] == [60, 40]  # no sample is of camera three
    assert [change.difference.value for change in found] == [pytest.approx(0.0), pytest.approx(-0.1)]


@pytest.mark.parametrize(
    ("severity", "samples", "judged"),
    [("critical", 30, True), ("major", 30, True), ("major", 29, False), ("info", 30, False)],
)
def test_who_is_judged(severity: str, samples: int, judged: bool) -> None:
    (found,) = changes([scenario(severity=severity, min_samples=30)], contest(samples, champion_wrong=[]))
    assert found.judged == judged


def test_models_sit_the_suite_together_and_each_corruption_is_made_once() -> None:
    held = contest(40, wrong=[1], champion_wrong=[2, 3])
    models = {"new": Reader(CHALLENGER), "old": Reader(CHAMPION)}
    suite = [
        scenario(),
        scenario(name="label", where={"label": "c1"}),
        scenario(name="noise", corruption="gaussian_noise", corruption_severity=1),
    ]
    answers = sit(suite, held.samples, models, seed=1)
    assert set(answers) == {"new", "old"} and list(answers["new"]) == [("none", 0), ("gaussian_noise", 1)]
    assert models["new"].calls == models["old"].calls == 2
    for key in answers["new"]:
        mine, theirs = held.answered(*key)
        assert np.array_equal(answers["new"][key], mine) and np.array_equal(answers["old"][key], theirs)
    clean = held.samples.targets != answers["new"]["none", 0]
    assert np.flatnonzero(clean).tolist() == [1]
    assert len(run_suite(suite, held)) == 3
