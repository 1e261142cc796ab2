"""Runs the project's scenarios: challenger and champion on the same samples, each figure against its bar."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionloop.evaluation.corruptions import corrupt
from visionloop.evaluation.metrics import compare, measure
from visionloop.evaluation.samples import TestSamples
from visionloop.project import Scenario
from visionloop.records import Interval, ScenarioResult
from visionloop.training.predict import Predictor

log = logging.getLogger(__name__)
Classes = NDArray[np.int64]
TINY = 1e-12


@dataclass(frozen=True)
class Contest:
    """Who is judged on what. Answers are kept by corruption, so that slices cost nothing."""

    samples: TestSamples
    challenger: Predictor
    champion: Predictor | None
    seed: int
    answers: dict[tuple[str, int], tuple[Classes, Classes | None]] = field(default_factory=dict)

    def answered(self, kind: str, severity: int) -> tuple[Classes, Classes | None]:
        """Class indices [N] of challenger and champion on all samples under a corruption."""
        key = key_of(kind, severity)
        if key not in self.answers:
            images = corrupt(self.samples.images, kind, severity, seed=self.seed)
            theirs = None if self.champion is None else self.champion(images).probabilities.argmax(1)
            self.answers[key] = (self.challenger(images).probabilities.argmax(1), theirs)
        return self.answers[key]


def key_of(kind: str, severity: int) -> tuple[str, int]:
    """What names a corruption; the clean samples have no severity."""
    return kind, 0 if kind == "none" else severity


def run_suite(scenarios: Sequence[Scenario], contest: Contest) -> list[ScenarioResult]:
    """One result for each bar of each scenario: two where a scenario has an absolute and a relative one."""
    results = [result for scenario in scenarios for result in _judge(scenario, contest)]
    for result in results:
        log.info("scenario %s: %s", result.name, describe(result))
    return results


def describe(result: ScenarioResult) -> str:
    """One line about a result: outcome, figures, bar."""
    figure, n = result.challenger, result.challenger.n
    if not n:
        return f"{result.outcome}, no test sample is of this scenario ({result.samples_needed} needed)"
    text = f"{result.outcome}, {result.metric} {figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}] on {n} samples"
    if result.bar_kind == "at_least":
        text += f", at least {result.bar:.4f} asked"
    if result.difference:
        change = result.difference
        text += f", champion {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
    if result.bar_kind == "not_worse_than_champion":
        text += f", at most {result.margin:.4f} may be lost"
    if result.outcome == "too_few":
        text += f", {result.samples_needed} samples needed"
    return text


def _judge(scenario: Scenario, contest: Contest) -> list[ScenarioResult]:
    chosen = contest.samples.where(scenario.where)
    challenger, champion = contest.answered(scenario.corruption, scenario.corruption_severity)
    targets = contest.samples.targets[chosen]
    mine, theirs = challenger[chosen], None if champion is None else champion[chosen]
    figures = _figures(scenario, targets, mine, theirs, contest.seed)
    bars = _bars(scenario, has_champion=theirs is not None)
    worst = _worst_class(scenario, contest.samples, chosen, mine)
    results = [_result(scenario, bar_kind, bar, figures) for bar_kind, bar in bars]
    return [result.model_copy(update={"worst_class": worst}) for result in results]


def _worst_class(scenario: Scenario, samples: TestSamples, chosen: NDArray[np.bool_], answered: Classes) -> str | None:
    """The name of the class with the smallest recall, where that is what the scenario measures."""
    if scenario.metric != "worst_class_recall" or not len(answered):
        return None
    targets = samples.targets[chosen]
    recalls = [(float((answered[targets == one] == one).mean()), int(one)) for one in np.unique(targets)]
    number = min(recalls)[1]
    return str(samples.columns["label"][chosen][targets == number][0])


@dataclass(frozen=True)
class _Figures:
    challenger: Interval
    champion: Interval | None
    difference: Interval | None


def _figures(scenario: Scenario, targets: Classes, mine: Classes, theirs: Classes | None, seed: int) -> _Figures:
    if not len(targets):
        return _Figures(Interval(value=0.0, low=0.0, high=1.0, n=0), None, None)
    challenger = measure(scenario.metric, targets, mine, seed=seed)
    if theirs is None:
        return _Figures(challenger, None, None)
    champion = measure(scenario.metric, targets, theirs, seed=seed)
    return _Figures(challenger, champion, compare(scenario.metric, targets, mine, theirs, seed=seed))


def _bars(scenario: Scenario, *, has_champion: bool) -> list[tuple[str, float | None]]:
    bars: list[tuple[str, float | None]] = []
    if scenario.at_least is not None:
        bars.append(("at_least", scenario.at_least))
    if scenario.not_worse_by is not None and has_champion:
        bars.append(("not_worse_than_champion", None))
    return bars or [("none", None)]


def _result(scenario: Scenario, bar_kind: str, bar: float | None, figures: _Figures) -> ScenarioResult:
    margin = scenario.not_worse_by or 0.0 if bar_kind == "not_worse_than_champion" else 0.0
    if bar_kind == "not_worse_than_champion" and figures.champion:
        bar = figures.champion.value - margin
    outcome, needed = "passed", scenario.min_samples
    if figures.challenger.n < scenario.min_samples:
        outcome = "too_few"
    elif bar_kind == "at_least" and bar is not None:
        outcome = "passed" if figures.challenger.value >= bar - TINY else "failed"
    elif figures.difference is not None and bar_kind == "not_worse_than_champion":
        outcome, needed = _not_worse(figures.difference, margin, scenario.min_samples)
    return ScenarioResult.model_validate(
        {
            "name": scenario.name,
            "metric": scenario.metric,
            "severity": scenario.severity,
            "bar": bar,
            "bar_kind": bar_kind,
            "margin": margin,
            "challenger": figures.challenger,
            "champion": figures.champion,
            "difference": figures.difference,
            "outcome": outcome,
            "samples_needed": needed,
        }
    )


def _not_worse(difference: Interval, margin: float, smallest: int) -> tuple[str, int]:
    """Non-inferiority: passed when even the interval's low end loses no more than the margin.

    Where the figure itself would do but the interval is too wide to show it, more samples are needed: the interval's
    reach shrinks with the root of their number.
    """
    if difference.low >= -margin - TINY:
        return "passed", smallest
    slack = difference.value + margin
    if slack <= 0:
        return "failed", smallest
    growth = ((difference.value - difference.low) / slack) ** 2
    return "too_few", max(smallest, math.ceil(difference.n * min(growth, 1e6)))
