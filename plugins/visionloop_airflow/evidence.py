"""What an approver sees: the candidate's figures as a markdown table, and the page with all of them."""

from visionloop import layout
from visionloop.records import Candidate, Evaluation, Interval, ScenarioResult, id_of


def subject(candidate: Candidate) -> str:
    """One line: what is to be decided."""
    return f"Release {candidate.model_name} version {candidate.version}?"


def body(candidate: Candidate, evaluation: Evaluation) -> str:
    """The figures, the digest that the approval is about, and where the page is."""
    against = (
        f"version of candidate `{id_of(evaluation.champion)}`" if evaluation.champion else "nothing: first release"
    )
    facts = [
        f"Challenger: version **{candidate.version}**, model SHA-256 `{candidate.model_sha256}`.",
        f"Champion: {against}. Both answered the same {evaluation.test_samples:,} test samples; 95 % intervals.",
    ]
    parity = candidate.parity
    packaged = (
        f"ONNX against PyTorch on {parity.samples:,} samples: {parity.disagreements} other decisions, probabilities "
        f"differ by at most {parity.max_abs_difference:.1e}."
    )
    link = f"[Evaluation page]({layout.page(candidate.project, evaluation.page_uri)})"
    return "\n\n".join([*facts, table(evaluation.scenarios), packaged, link])


def table(scenarios: list[ScenarioResult]) -> str:
    """A row per scenario."""
    head = ["scenario", "metric", "severity", "challenger", "champion", "difference", "bar", "outcome"]
    rows = [head, ["---"] * len(head), *(_row(scenario) for scenario in scenarios)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(scenario: ScenarioResult) -> list[str]:
    return [
        scenario.name,
        scenario.metric,
        scenario.severity,
        _interval(scenario.challenger),
        _interval(scenario.champion),
        _interval(scenario.difference, sign="+"),
        _bar(scenario),
        f"**{scenario.outcome}**" if scenario.outcome != "passed" else "passed",
    ]


def _interval(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value.value:{sign}.4f} ({value.low:{sign}.4f} to {value.high:{sign}.4f})"


def _bar(scenario: ScenarioResult) -> str:
    if scenario.bar_kind == "at_least":
        return f"at least {scenario.bar}"
    if scenario.bar_kind == "not_worse_than_champion":
        return f"not worse by {scenario.margin}"
    return "-"
