"""What an approver sees: the candidate's figures as a markdown table, and the page with all of them."""

from typing import Any
from urllib.parse import quote

from visionloop.records import Candidate, Evaluation, Interval, Record, ScenarioResult
from visionloop.stores.ledger import Ledger

PAGES = "/visionloop/pages"
"""Where the plugin serves pages of the object store."""


def subject(candidate: Candidate) -> str:
    """One line: what is to be decided."""
    return f"Release {candidate.model_name} version {candidate.version}?"


def body(candidate: Candidate, evaluation: Evaluation) -> str:
    """The figures, the digest that the approval is about, and where the page is."""
    against = (
        f"version of candidate `{_short(evaluation.champion)}`" if evaluation.champion else "nothing: first release"
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
    link = f"[Evaluation page]({page_link(evaluation.page_uri, candidate.project)})"
    return "\n\n".join([*facts, table(evaluation.scenarios), packaged, link])


def table(scenarios: list[ScenarioResult]) -> str:
    """A row per scenario."""
    head = ["scenario", "metric", "severity", "challenger", "champion", "difference", "bar", "outcome"]
    rows = [head, ["---"] * len(head), *(_row(scenario) for scenario in scenarios)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page_link(uri: str, project: str) -> str:
    """Address of a project's page, below Airflow's own; a page that lies elsewhere keeps its own."""
    _, inside, artifact = uri.partition(f"/{project}/artifacts/")
    return f"{PAGES}/{project}__release/{quote(artifact)}" if inside else uri


def find(ledger: Ledger, kind: type[Record], project: str, name: str) -> Any:
    """A record by its URI or by its id."""
    if "://" in name:
        return ledger.get(kind, name)
    return ledger.find(kind, project, name)


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


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")
