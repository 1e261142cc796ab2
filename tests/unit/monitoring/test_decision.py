"""The decision: each reason against it, both sides of each threshold, and what must hold whatever the evidence."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.monitoring.decision import Evidence, decide
from visionloop.project import Monitoring
from visionloop.records import DriftReport, DriftView

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = Monitoring(window_samples=1_000, cooldown_minutes=60, min_views=2)


def view(drifted: bool) -> DriftView:
    return DriftView(
        name="image",
        columns=7,
        drifted_columns=6 if drifted else 0,
        share=6 / 7 if drifted else 0.0,
        threshold=0.3,
        drifted=drifted,
        scores={},
        detail="moved: sharpness 0.90",
    )


def report(drifted: bool = True, samples: int = 1_000) -> DriftReport:
    return DriftReport(
        id="r",
        project="p",
        window="w",
        candidate="c1",
        reference_samples=5_000,
        window_samples=samples,
        views=[view(False), view(drifted), view(drifted)],
        drifted=drifted,
        html_uri="h",
        json_uri="j",
    )


def evidence(**changed: object) -> Evidence:
    known: dict[str, object] = {
        "report": report(),
        "champion": "c1",
        "open_request": None,
        "last_release_at": None,
        "last_request_at": None,
        "now": NOW,
    }
    return Evidence.model_validate({**known, **changed})


def test_drift_alone_asks_for_a_retraining_with_the_changed_views_first() -> None:
    action, reasons = decide(evidence(), POLICY)
    assert action == "retrain"
    assert [reason.startswith("image view changed: 6 of 7 columns (limit 30%)") for reason in reasons] == [1, 1, 0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"report": report(drifted=False)}, "no drift: 0 of 3 views changed, 2 would be drift"),
        (
            {"report": report(samples=499)},
            "the window is too small: 499 samples with an image, at least 500 are needed",
        ),
        ({"open_request": "s3://b/p/records/trigger_decision/abc.json"}, "retrain request abc is open already"),
        ({"champion": None}, "no model is released, the report is about candidate c1"),
        ({"champion": "s3://b/p/records/candidate/c2.json"}, "the report is about candidate c1, meanwhile c2 serves"),
        (
            {"last_release_at": NOW - timedelta(minutes=59)},
            "cooldown of 60 minutes since the last release: until 2026-01-02T00:01:00+00:00",
        ),
        (
            {"last_request_at": NOW - timedelta(minutes=1)},
            "cooldown of 60 minutes since the last retrain request: until 2026-01-02T00:59:00+00:00",
        ),
    ],
)
def test_each_reason_against_it(changed: dict[str, object], reason: str) -> None:
    action, reasons = decide(evidence(**changed), POLICY)
    assert (action, reasons[0]) == ("none", reason)
    assert len(reasons) == 4, "the views follow, so that a person sees what was measured"


@pytest.mark.parametrize(
    "changed",
    [
        {"report": report(samples=500)},
        {"last_release_at": NOW - timedelta(minutes=60)},
        {"last_request_at": NOW - timedelta(minutes=60)},
        {"champion": "s3://b/p/records/candidate/c1.json"},
    ],
)
def test_just_enough_is_enough(changed: dict[str, object]) -> None:
    assert decide(evidence(**changed), POLICY)[0] == "retrain"


def test_no_cooldown_is_no_wait() -> None:
    policy = POLICY.model_copy(update={"cooldown_minutes": 0.0})
    assert decide(evidence(last_release_at=NOW), policy)[0] == "retrain"


ago = st.none() | st.integers(0, 10_000).map(lambda minutes: NOW - timedelta(minutes=minutes))


@given(
    drifted=st.booleans(),
    samples=st.integers(0, 5_000),
    champion=st.sampled_from(["c1", "c2", None]),
    open_request=st.sampled_from([None, "x"]),
    last_release_at=ago,
    last_request_at=ago,
    cooldown=st.floats(0, 10_000),
)
def test_a_retraining_is_asked_for_only_when_everything_holds(
    drifted: bool,
    samples: int,
    champion: str | None,
    open_request: str | None,
    last_release_at: datetime | None,
    last_request_at: datetime | None,
    cooldown: float,
) -> None:
    policy = POLICY.model_copy(update={"cooldown_minutes": cooldown})
    seen = evidence(
        report=report(drifted, samples),
        champion=champion,
        open_request=open_request,
        last_release_at=last_release_at,
        last_request_at=last_request_at,
    )
    cooled = all(at is None or NOW - at >= timedelta(minutes=cooldown) for at in (last_release_at, last_request_at))
    expected = drifted and samples >= 500 and champion == "c1" and open_request is None and cooled
    action, reasons = decide(seen, policy)
    assert (action == "retrain") is expected
    assert reasons
    assert all(reasons)
