"""The gate: evaluation and policy in, decision with reasons out. A pure function, light enough for any process."""

from typing import Literal

from visionloop.project import Gate
from visionloop.records import Evaluation, ScenarioResult

Outcome = Literal["passed", "rejected"]


def decide(evaluation: Evaluation, policy: Gate) -> tuple[Outcome, list[str]]:
    """Passed when no critical scenario failed or lacked samples, few enough major ones failed, and it got better.

    The reasons come most important first: what rejects, then what was let through, then what speaks for it.
    """
    against = _critical(evaluation) + _major(evaluation, policy) + _improvement(evaluation, policy)
    tolerated = len(_failed_major(evaluation)) <= policy.max_failed_major
    noted = [_line(result) for result in evaluation.scenarios if _only_noted(result, tolerated=tolerated)]
    if against:
        return "rejected", against + noted
    return "passed", [_summary(evaluation), *noted]


def improved(evaluation: Evaluation) -> list[ScenarioResult]:
    """Critical and major scenarios in which the challenger is better, with 95 % confidence."""
    return [
        result
        for result in evaluation.scenarios
        if result.severity in ("critical", "major")
        and result.outcome != "too_few"
        and result.difference is not None
        and result.difference.low > 0
    ]


def _critical(evaluation: Evaluation) -> list[str]:
    bad = [r for r in evaluation.scenarios if r.severity == "critical" and r.outcome != "passed"]
    return [_line(result) for result in sorted(bad, key=lambda result: result.outcome != "failed")]


def _major(evaluation: Evaluation, policy: Gate) -> list[str]:
    failed = _failed_major(evaluation)
    if len(failed) <= policy.max_failed_major:
        return []
    allowed = f"{len(failed)} major scenarios failed, {policy.max_failed_major} may (gate.max_failed_major)"
    results = [r for r in evaluation.scenarios if r.severity == "major" and r.outcome == "failed"]
    return [allowed, *(_line(result) for result in results)]


def _failed_major(evaluation: Evaluation) -> set[str]:
    """By name: a scenario with two bars fails once."""
    return {r.name for r in evaluation.scenarios if r.severity == "major" and r.outcome == "failed"}


def _improvement(evaluation: Evaluation, policy: Gate) -> list[str]:
    if not policy.must_improve or evaluation.champion is None or improved(evaluation):
        return []
    compared = [r for r in evaluation.scenarios if r.severity in ("critical", "major") and r.difference is not None]
    best = max((r.difference.low for r in compared if r.difference), default=None)
    nearest = "" if best is None else f" (the nearest interval begins at {best:+.4f})"
    return [f"no critical or major scenario improved on the champion with 95 % confidence{nearest}"]


def _only_noted(result: ScenarioResult, *, tolerated: bool) -> bool:
    """Missed, but nothing that rejects; `tolerated`: the major scenarios that failed are few enough."""
    if result.outcome == "passed" or result.severity == "critical":
        return False
    return result.severity == "info" or result.outcome == "too_few" or tolerated


def _line(result: ScenarioResult) -> str:
    name = f"{result.severity} scenario {result.name}"
    figure = result.challenger
    if result.outcome == "too_few":
        return f"{name} has too few samples: {figure.n}, {result.samples_needed} needed"
    if result.bar_kind == "at_least" and result.bar is not None:
        return f"{name} failed: {_metric(result)} {figure.value:.4f}, at least {result.bar:.4f} asked"
    assert result.difference is not None
    change = result.difference
    return (
        f"{name} failed: {_metric(result)} {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}] against the "
        f"champion, at most {result.margin:.4f} may be lost"
    )


def _metric(result: ScenarioResult) -> str:
    return f"{result.metric} ({result.worst_class})" if result.worst_class else result.metric


def _summary(evaluation: Evaluation) -> str:
    critical = sum(result.severity == "critical" for result in evaluation.scenarios)
    text = f"all {critical} critical bars hold on {evaluation.test_samples} test samples"
    if evaluation.champion is None:
        return f"{text}; there is no champion to compare with"
    better = improved(evaluation)
    if not better:
        return f"{text}; not better than the champion, which the policy does not ask"
    best = max(better, key=lambda result: result.difference.low if result.difference else 0.0)
    assert best.difference is not None
    change = best.difference
    figure = f"{best.metric} {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
    return f"{text}; better than the champion in {best.name}: {figure}"
