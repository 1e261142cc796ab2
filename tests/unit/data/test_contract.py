"""The contract: both sides of each threshold, each reason, and a page on which nothing runs."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from visionloop.data.contract import Terms, Verdict, judge
from visionloop.data.rows import SCHEMA
from visionloop.project import Contract

GOOD: dict[str, Any] = {
    "label": "a", "group": "", "metadata": "{}", "size_bytes": 9, "height": 16, "width": 16, "channels": 1,
    "brightness": 100.0, "image": b"", "error": None, "detail": None,
}  # fmt: skip
CLASSES = ("a", "b", "c d", "<i>$x")


def held(
    *changes: Mapping[str, Any],
    good: int = 8,
    group_by: str | None = None,
    known: Mapping[str, str] | None = None,
    **contract: Any,
) -> Verdict:
    """Judge `good` rows without a fault (labels a, b, a, ...) and after them one row for each change."""
    contract = {"max_quarantine_share": 1.0} | contract
    rows = [GOOD | {"path": f"g{n}", "sample_id": f"g{n}", "label": "ab"[n % 2], "group": "g"} for n in range(good)]
    rows += [GOOD | {"path": f"x{n}", "sample_id": f"x{n}"} | dict(change) for n, change in enumerate(changes)]
    terms = Terms(Contract(**contract), CLASSES, group_by, known or {})
    return judge(pa.Table.from_pylist(rows, SCHEMA), terms, title="p, batch <one>")


def reason(*changes: Mapping[str, Any], **options: Any) -> str:
    """Why the row after the good ones is quarantined."""
    verdict = held(*changes, **options)
    assert verdict.reasons[:8] == [""] * 8
    return verdict.reasons[8]


BROKEN = {"height": None, "width": None, "channels": None, "brightness": None}


BOUNDS = {"min_side": 12, "max_side": 20, "brightness": (10.0, 200.0)}
REASONS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"error": "truncated", **BROKEN}, "truncated"),
    ({"error": "corrupt", **BROKEN, "label": "zz"}, "corrupt"),
    ({"label": None}, "no_label"),
    ({"label": ""}, "no_label"),
    ({"label": "zz"}, "unknown_label"),
    ({"label": "A"}, "unknown_label"),
    ({"label": "c d"}, ""),
    ({"label": "<i>$x"}, ""),
    ({"height": 12}, ""),
    ({"height": 11}, "too_small"),
    ({"width": 11}, "too_small"),
    ({"width": 20}, ""),
    ({"width": 21}, "too_large"),
    ({"height": 21}, "too_large"),
    ({"height": 21, "brightness": 0.0}, "too_large"),
    ({"brightness": 10.0}, ""),
    ({"brightness": 9.9}, "brightness"),
    ({"brightness": 200.0}, ""),
    ({"brightness": 200.1}, "brightness"),
]


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    """On all of REASONS at once: Great Expectations takes its time."""
    return held(*(change for change, _ in REASONS), **BOUNDS)


@pytest.mark.parametrize("number", range(len(REASONS)))
def test_each_reason_on_both_sides(verdict: Verdict, number: int) -> None:
    assert verdict.reasons[:8] == [""] * 8
    assert (REASONS[number][0], verdict.reasons[8 + number]) == REASONS[number]


def test_a_group_is_asked_for_only_where_splits_need_it() -> None:
    assert reason({"group": ""}) == ""
    assert held({"group": ""}, {"group": "p1"}, group_by="patient").reasons[8:] == ["no_group", ""]


def test_one_image_with_two_labels_is_quarantined_both_times() -> None:
    one, two, same = {"sample_id": "s"}, {"sample_id": "s", "label": "b"}, {"sample_id": "t"}
    verdict = held(one, two, same, same)
    assert verdict.reasons[8:] == ["conflicting_labels", "conflicting_labels", "", ""]
    assert not next(check for check in verdict.checks if check.name == "delivered once").passed


def test_a_known_image_keeps_its_label() -> None:
    changes = [{"sample_id": "s", "label": "b"}, {"sample_id": "t", "label": "a"}, {"sample_id": "u", "label": "<i>$x"}]
    verdict = held(*changes, known={"s": "a", "t": "a", "u": "<i>$x"})
    assert verdict.reasons[8:] == ["label_differs_from_dataset", "", ""]


def outcome(*changes: Mapping[str, Any], good: int = 8, **contract: Any) -> tuple[str, list[str]]:
    verdict = held(*changes, good=good, **contract)
    failed = [check.name for check in verdict.checks if check.severity == "error" and not check.passed]
    return verdict.outcome, failed


def test_the_batch_is_refused_beyond_each_threshold() -> None:
    assert outcome(min_samples=8) == ("accepted", [])
    assert outcome(min_samples=9) == ("refused", ["enough samples"])
    assert outcome({"label": "zz"}, {"label": "zz"}, max_quarantine_share=0.2) == ("accepted", [])
    assert outcome({"label": "zz"}, {"label": "zz"}, max_quarantine_share=0.19) == ("refused", ["clean enough"])
    assert outcome({}, {}, max_class_share=0.6) == ("accepted", [])
    assert outcome({}, {}, max_class_share=0.59) == ("refused", ["balanced"])
    # What is quarantined does not count for the balance: 4 a and 4 b are left.
    assert outcome({"height": 2}, {"height": 2}, max_class_share=0.5) == ("accepted", [])
    assert outcome({"label": "zz"}, good=0) == ("refused", ["something to learn from"])
    assert outcome({}, good=0) == ("accepted", [])


def test_missing_classes_are_told_but_do_not_refuse() -> None:
    verdict = held()
    check = next(check for check in verdict.checks if check.name == "every class")
    assert (verdict.outcome, check.severity, check.passed, check.observed) == ("accepted", "warn", False, "2")


def test_checks_say_how_many_and_what() -> None:
    verdict = held({"label": "zz"}, {"label": "yy"}, {"brightness": 0.0}, brightness=(1.0, 254.0))
    checks = {check.name: check for check in verdict.checks}
    assert checks["known class"].failed_samples == 2
    assert checks["known class"].observed == "2 of 11 samples break it"
    assert checks["exposed"].expected == "a mean grey value from 1 to 254"
    assert verdict.details[8] == "label is zz, expected one of the 4 classes"
    assert verdict.details[0] == ""


def test_the_page_holds_the_verdict_and_nothing_that_runs() -> None:
    page = held({"label": "<script>alert(1)</script>"}, {"label": "<img src=x onerror=alert(1)>"}).html
    assert "p, batch &lt;one&gt;: <span class='accepted'>accepted</span>" in page
    assert "values must belong to this set" in page
    assert "2 of 10 samples break it" in page
    for forbidden in ("<script", "<img", "<link", "src=", "http://", "https://"):
        assert forbidden not in page.replace("&lt;img src=x", "")
    assert "default-src 'none'" in page
    assert len(page) < 200_000
