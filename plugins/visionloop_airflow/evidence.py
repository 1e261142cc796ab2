"""What an approver sees: the candidate's figures as a markdown table, and the page with all of them."""

from visionloop import layout
from visionloop.project import Project
from visionloop.records import Candidate, Evaluation, Interval, ScenarioResult
from visionloop.serving.cost import shown_cost


def subject(candidate: Candidate) -> str:
    """One line: what is to be decided."""
    return f"Release {candidate.model_name} version {candidate.version}?"


def body(
    candidate: Candidate, evaluation: Evaluation, champion: Candidate | None, project: Project | None = None
) -> str:
    """The figures, the digest that the approval is about, and where the page is."""
    samples = f"{evaluation.test_samples:,} test samples; in brackets 95 % intervals"
    facts = [
        f"Challenger: version **{candidate.version}**, model SHA-256 `{candidate.model_sha256}`.",
        f"Champion: version **{champion.version}**. Both answered the same {samples}."
        if champion
        else f"There is no champion yet: this is the first release. The challenger answered {samples}.",
    ]
    parity = candidate.parity
    packaged = (
        f"ONNX against PyTorch on {parity.samples:,} samples: {parity.disagreements} other decisions, probabilities "
        f"differ by at most {parity.max_abs_difference:.1e}."
    )
    links = f"[Evaluation page]({layout.page(candidate.project, evaluation.page_uri)})"
    if candidate.page_uri:
        links += f", [candidate page]({layout.page(candidate.project, candidate.page_uri)})"
    built = [variants(candidate, project), *cost(candidate, champion)] if candidate.variants else []
    return "\n\n".join([*facts, table(evaluation.scenarios), packaged, *built, links])


def variants(candidate: Candidate, project: Project | None = None) -> str:
    """A row per variant of the model: which one is served, and why not the others."""
    price = project.price if project else None
    at_once = project.serving.instances * project.serving.threads if project else 1
    rows = [["variant", "1,000 images", "size", "outcome"], ["---"] * 4]
    for variant in candidate.variants:
        cost = variant.seconds_per_1000_images
        name = f"**{variant.name}**" if variant.chosen else variant.name
        shown = "not measured" if cost is None else shown_cost(cost, price, at_once)
        outcome = f"{'**served**' if variant.chosen else 'not served'}: {variant.reason}"
        rows.append([name, shown, f"{variant.size_bytes / 1e6:.2f} MB", outcome])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cost(candidate: Candidate, champion: Candidate | None) -> list[str]:
    """What is served beside what serves; the release measures both again, in turns."""
    mine, theirs = _seconds(candidate), _seconds(champion) if champion else None
    if champion is None or not mine or not theirs:
        return []
    return [f"1,000 images cost {mine / theirs:.2f}x the champion's, each as it was measured when it was packaged."]


def _seconds(candidate: Candidate) -> float | None:
    return next((variant.seconds_per_1000_images for variant in candidate.variants if variant.chosen), None)


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
    figure, low, high = (f"{100 * part:{sign}.1f}" for part in (value.value, value.low, value.high))
    return f"{figure} % [{low}, {high}]"


def _bar(scenario: ScenarioResult) -> str:
    if scenario.bar_kind == "at_least":
        return f"at least {100 * (scenario.bar or 0):.1f} %"
    if scenario.bar_kind == "not_worse_than_champion":
        return f"at most {100 * scenario.margin:.1f} points below the champion"
    return "-"
