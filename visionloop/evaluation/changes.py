"""What a model loses against another on the same samples, scenario by scenario; several sit the suite at once."""

from collections.abc import Mapping, Sequence

from visionloop.evaluation.corruptions import corrupt
from visionloop.evaluation.metrics import compare
from visionloop.evaluation.samples import TestSamples
from visionloop.evaluation.suite import Classes, Contest, key_of
from visionloop.project import Scenario
from visionloop.records import Change
from visionloop.training.predict import Predictor


def sit(
    scenarios: Sequence[Scenario], samples: TestSamples, models: Mapping[str, Predictor], *, seed: int
) -> dict[str, dict[tuple[str, int], Classes]]:
    """Class indices [N] of each model under each corruption that a scenario names; each is made once for all."""
    corruptions = dict.fromkeys(key_of(scenario.corruption, scenario.corruption_severity) for scenario in scenarios)
    answers: dict[str, dict[tuple[str, int], Classes]] = {name: {} for name in models}
    for kind, severity in corruptions:
        images = corrupt(samples.images, kind, severity, seed=seed)
        for name, predict in models.items():
            answers[name][kind, severity] = predict(images).probabilities.argmax(1)
    return answers


def changes(scenarios: Sequence[Scenario], contest: Contest) -> list[Change]:
    """Challenger minus champion of a contest, one for each scenario that has samples."""
    return [change for scenario in scenarios if (change := _change(scenario, contest)) is not None]


def _change(scenario: Scenario, contest: Contest) -> Change | None:
    chosen = contest.samples.where(scenario.where)
    mine, theirs = contest.answered(scenario.corruption, scenario.corruption_severity)
    assert theirs is not None, "a change is against another model"
    if not chosen.any():
        return None
    targets = contest.samples.targets[chosen]
    return Change(
        scenario=scenario.name,
        metric=scenario.metric,
        severity=scenario.severity,
        difference=compare(scenario.metric, targets, mine[chosen], theirs[chosen], seed=contest.seed),
        judged=scenario.severity != "info" and len(targets) >= scenario.min_samples,
    )
