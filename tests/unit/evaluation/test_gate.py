"""The gate as a function: what rejects, what is only noted, and that a better challenger never fares worse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.evaluation.gate import decide, improved
from visionloop.project import Gate
from visionloop.records import Evaluation, Interval, ScenarioResult

STRICT, LENIENT = Gate(max_failed_major=0, must_improve=False), Gate(max_failed_major=1, must_improve=False)
MUST_IMPROVE = Gate(max_failed_major=0, must_improve=True)


def figure(value: float, reach: float = 0.01, n: int = 500) -> Interval:
    return Interval(value=value, low=value - reach, high=value + reach, n=n)


def result(name: str = "overall", outcome: str = "passed", severity: str = "critical", **values: object):  # type: ignore[no-untyped-def]
    given = {"metric": "accuracy", "bar": 0.8, "bar_kind": "at_least", "challenger": figure(0.85), "samples_needed": 30}
    return ScenarioResult.model_validate({"name": name, "outcome": outcome, "severity": severity, **given, **values})


def against_champion(change: float, reach: float, outcome: str = "passed", **values: object) -> ScenarioResult:
    """A result with a champion; the interval of the difference is `change` +- `reach`."""
    compared = {"champion": figure(0.85 - change), "difference": figure(change, reach), "margin": 0.02}
    return result(outcome=outcome, bar_kind="not_worse_than_champion", **{**compared, **values})


def evaluation(*results: ScenarioResult, champion: str | None = None) -> Evaluation:
    return Evaluation(
        id="e",
        project="p",
        snapshot="s",
        training_run="t",
        champion=champion,
        test_samples=500,
        scenarios=list(results),
        page_uri="u",
    )


@pytest.mark.parametrize("policy", [STRICT, LENIENT])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            result("night", "failed", challenger=figure(0.7912)),
            "critical scenario night failed: accuracy 0.7912, at least 0.8000 asked",
        ),
        (
            result("classes", "failed", metric="worst_class_recall", challenger=figure(0.1), worst_class="shirt"),
            "critical scenario classes failed: worst_class_recall (shirt) 0.1000, at least 0.8000 asked",
        ),
        (
            result("night", "too_few", challenger=figure(0.9, n=12), samples_needed=40),
            "critical scenario night has too few samples: 12, 40 needed",
        ),
        (
            against_champion(-0.031, 0.004, "failed", name="night"),
            "critical scenario night failed: accuracy -0.0310 [-0.0350, -0.0270] against the champion, "
            "at most 0.0200 may be lost",
        ),
    ],
)
def test_a_critical_scenario_rejects_with_its_name_and_figures(policy: Gate, bad: ScenarioResult, reason: str) -> None:
    assert decide(evaluation(result(), bad), policy) == ("rejected", [reason])


@pytest.mark.parametrize(("failed", "outcome"), [(0, "passed"), (1, "passed"), (2, "rejected")])
def test_so_many_major_scenarios_may_fail(failed: int, outcome: str) -> None:
    bad = [result(f"m{number}", "failed", "major", challenger=figure(0.7)) for number in range(failed)]
    decided, reasons = decide(evaluation(result(), *bad), LENIENT)
    assert decided == outcome
    assert all(sum(f"major scenario m{number} failed" in line for line in reasons) == 1 for number in range(failed))
    if failed == 2:
        assert reasons[0] == "2 major scenarios failed, 1 may (gate.max_failed_major)"
        assert "accuracy 0.7000, at least 0.8000 asked" in reasons[1]
        assert decide(evaluation(result(), bad[0]), STRICT)[0] == "rejected"


def test_a_major_scenario_with_two_bars_fails_once() -> None:
    both = (
        result("m", "failed", "major", challenger=figure(0.7)),
        against_champion(-0.1, 0.01, "failed", name="m", severity="major"),
    )
    assert decide(evaluation(result(), *both, champion="c"), LENIENT)[0] == "passed"


@pytest.mark.parametrize("severity", ["major", "info"])
def test_too_few_of_what_is_not_critical_is_noted(severity: str) -> None:
    few = result("rare", "too_few", severity, challenger=figure(0.1, n=3))
    outcome, reasons = decide(evaluation(result(), few), STRICT)
    assert outcome == "passed"
    assert reasons[1] == f"{severity} scenario rare has too few samples: 3, 30 needed"


def test_info_never_rejects_and_is_noted() -> None:
    poor = result("fog", "failed", "info", challenger=figure(0.2))
    outcome, reasons = decide(evaluation(result(), poor), STRICT)
    assert outcome == "passed"
    assert reasons == [
        "all 1 critical bars hold on 500 test samples; there is no champion to compare with",
        "info scenario fog failed: accuracy 0.2000, at least 0.8000 asked",
    ]


@pytest.mark.parametrize(("change", "reach", "outcome"), [(0.011, 0.0101, "passed"), (0.010, 0.0101, "rejected")])
@pytest.mark.parametrize("severity", ["critical", "major"])
def test_it_must_improve_with_confidence(severity: str, change: float, reach: float, outcome: str) -> None:
    found = evaluation(against_champion(change, reach, severity=severity), champion="c")
    decided, reasons = decide(found, MUST_IMPROVE)
    assert decided == outcome
    assert decide(found, STRICT)[0] == "passed"
    if outcome == "rejected":
        assert reasons == [
            "no critical or major scenario improved on the champion with 95 % confidence "
            "(the nearest interval begins at -0.0001)"
        ]
    else:
        assert "better than the champion in overall: accuracy +0.0110 [+0.0009, +0.0211]" in reasons[0]


def test_better_only_where_it_is_info_or_unsure_is_no_improvement() -> None:
    found = evaluation(
        against_champion(0.0, 0.01),
        against_champion(0.2, 0.01, name="fog", severity="info"),
        against_champion(0.2, 0.01, "too_few", name="rare", severity="major"),
        champion="c",
    )
    assert improved(found) == []
    assert decide(found, MUST_IMPROVE)[0] == "rejected"


def test_without_a_champion_nothing_must_improve() -> None:
    assert decide(evaluation(result()), MUST_IMPROVE)[0] == "passed"


def test_the_champion_is_told_where_it_is_not_asked() -> None:
    _, reasons = decide(evaluation(against_champion(0.0, 0.01), champion="c"), STRICT)
    assert reasons[0].endswith("not better than the champion, which the policy does not ask")


def test_what_rejects_comes_before_what_is_noted() -> None:
    _, reasons = decide(
        evaluation(
            result("i", "failed", "info"),
            result("few", "too_few"),
            result("m", "failed", "major"),
            result("c", "failed"),
            against_champion(0.0, 0.01),
            champion="x",
        ),
        MUST_IMPROVE,
    )
    assert [line.split(" scenario")[0] for line in reasons] == [
        "critical", "critical", "1 major", "major", "no critical or major", "info",
    ]  # fmt: skip
    assert " c failed" in reasons[0] and " few has too few" in reasons[1]


@st.composite
def bars(draw: st.DrawFn) -> dict[str, object]:
    """A scenario, the challenger's figure and the champion's, and how sure the difference is."""
    return {
        "name": draw(st.sampled_from(["a", "b", "c", "d"])),
        "severity": draw(st.sampled_from(["critical", "major", "info"])),
        "kind": draw(st.sampled_from(["at_least", "not_worse_than_champion", "none"])),
        "n": draw(st.sampled_from([10, 500])),
        "value": draw(st.floats(0.3, 0.9)),
        "theirs": draw(st.floats(0.3, 0.9)),
        "bar": draw(st.floats(0.3, 0.9)),
        "margin": draw(st.floats(0.0, 0.3)),
        "reach": draw(st.floats(0.001, 0.3)),
    }


def judged(bar: dict, *, gain: float, champion: bool) -> ScenarioResult:  # type: ignore[type-arg]
    """The bar's result when the challenger is better by `gain`."""
    value, margin = bar["value"] + gain, bar["margin"]
    change = figure(value - bar["theirs"], bar["reach"], bar["n"])
    outcome = "passed"
    if bar["n"] < 30:
        outcome = "too_few"
    elif bar["kind"] == "at_least" and value < bar["bar"]:
        outcome = "failed"
    elif bar["kind"] == "not_worse_than_champion" and champion and change.low < -margin:
        outcome = "failed" if change.value <= -margin else "too_few"
    return result(
        bar["name"],
        outcome,
        bar["severity"],
        bar_kind=bar["kind"] if champion or bar["kind"] == "at_least" else "none",
        bar=bar["bar"],
        margin=margin,
        challenger=figure(value, n=bar["n"]),
        champion=figure(bar["theirs"], n=bar["n"]) if champion else None,
        difference=change if champion else None,
    )


policies = st.builds(Gate, max_failed_major=st.integers(0, 2), must_improve=st.booleans())
suites = st.lists(st.tuples(bars(), st.floats(0.0, 0.1)), min_size=1, max_size=5)


@given(suites, policies, st.booleans())
def test_a_better_challenger_never_turns_from_passed_to_rejected(  # type: ignore[no-untyped-def]
    suite, policy: Gate, champion: bool
) -> None:
    name = "c" if champion else None
    worse = evaluation(*(judged(bar, gain=0.0, champion=champion) for bar, _ in suite), champion=name)
    better = evaluation(*(judged(bar, gain=gain, champion=champion) for bar, gain in suite), champion=name)
    if decide(worse, policy)[0] == "passed":
        assert decide(better, policy)[0] == "passed"


@given(suites, st.integers(0, 2), st.booleans())
def test_the_decision_is_what_the_policy_says(suite, may_fail: int, must: bool) -> None:  # type: ignore[no-untyped-def]
    found = evaluation(*(judged(bar, gain=0.0, champion=True) for bar, _ in suite), champion="c")
    outcome, reasons = decide(found, Gate(max_failed_major=may_fail, must_improve=must))
    critical = [r.name for r in found.scenarios if r.severity == "critical" and r.outcome != "passed"]
    major = {r.name for r in found.scenarios if r.severity == "major" and r.outcome == "failed"}
    stands_still = must and not improved(found)
    assert (outcome == "rejected") == bool(critical or len(major) > may_fail or stands_still)
    assert reasons
    for name in critical:
        assert any(f"critical scenario {name} " in line for line in reasons)
    assert decide(found, Gate(max_failed_major=may_fail, must_improve=must)) == (outcome, reasons)
