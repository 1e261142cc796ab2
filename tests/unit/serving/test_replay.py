"""Answers of champion and candidate to the same captured images: counted by hand, both sides of each bound."""

import numpy as np
import pytest

from visionloop.project import Release as Policy
from visionloop.records import ShadowEvidence
from visionloop.serving.replay import describe, hold_together, judge, pair

POLICY = Policy(approval="automatic", max_error_rate=0.01, max_changed=0.3, max_unsure=0.1)
WELL = ShadowEvidence(
    source="replayed", images=1000, failed=0, compared=1000, changed=100, unsure=50, champion_unsure=50
)


def test_what_is_counted() -> None:
    champion = np.array([[0.9, 0.1, 0], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0, 0, 1], [0.2, 0.2, 0.6]], np.float32)
    candidate = np.array(
        [[0.8, 0.2, 0], [0.3, 0.4, 0.3], [0.9, 0.05, 0.05], [np.nan, 0, 1], [0.4, 0.25, 0.35]], np.float32
    )
    found = hold_together(champion, candidate, failed=2)
    assert found == ShadowEvidence(
        source="replayed", images=7, failed=3, not_finite=1, compared=4, changed=3, unsure=2, champion_unsure=1
    )


def test_nothing_captured_is_said_and_is_no_fault() -> None:
    none = np.empty((0, 3), np.float32)
    found = hold_together(none, none)
    assert (found.source, found.images) == ("none", 0)
    assert describe(found) == "no live traffic to mirror, and none captured to replay"
    assert judge(found, POLICY) is None


def test_requests_that_all_failed_are_evidence_too() -> None:
    none = np.empty((0, 3), np.float32)
    found = hold_together(none, none, failed=20)
    assert (found.source, found.failed) == ("replayed", 20)
    assert judge(found, POLICY) == "of 20 captured images the candidate has no sound answer to 20, allowed 1.0%"


def answers(count: int, best: int = 0) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[[best] * count]


@pytest.mark.parametrize(
    ("mirrored", "source", "said"),
    [
        (0, "replayed", "5 captured images replayed: "),
        (3, "replayed", "3 live images mirrored, 2 captured images replayed: "),
        (5, "mirrored", "5 live images mirrored: "),
    ],
)
def test_where_the_images_are_from(mirrored: int, source: str, said: str) -> None:
    found = hold_together(answers(4), answers(4), failed=1, mirrored=mirrored)
    assert (found.source, found.images, found.mirrored) == (source, 5, mirrored)
    assert describe(found).startswith(said)


@pytest.mark.parametrize(
    ("refused", "failed"),
    [(0, 0), (1, 2), (2, 5), (9, 5)],  # two requests with 5 images have no answer of the candidate
)
def test_what_is_missing_is_a_failure_only_where_errors_were_seen(refused: int, failed: int) -> None:
    champion = {"a": answers(2), "b": answers(1), "c": answers(4), "d": answers(3)}
    candidate = {"a": answers(2, 1), "d": answers(3, 2), "unknown": answers(7)}
    before, after, lost = pair(champion, candidate, classes=3, refused=refused)
    assert (before == np.concatenate([answers(2), answers(3)])).all()
    assert (after == np.concatenate([answers(2, 1), answers(3, 2)])).all()
    assert lost == failed


def test_a_request_whose_answers_differ_in_number_is_left_out() -> None:
    before, after, lost = pair(
        {"a": answers(2), "b": answers(1)}, {"a": answers(1), "b": answers(1)}, classes=3, refused=3
    )
    assert (len(before), len(after), lost) == (1, 1, 0)


def test_nothing_mirrored_is_nothing_paired() -> None:
    for candidate in ({}, {"a": answers(2)}):  # its file may be written before the champion's
        before, after, lost = pair({}, candidate, classes=3, refused=5)
        assert (before.shape, after.shape, lost) == ((0, 3), (0, 3), 0)
        assert hold_together(before, after, failed=lost).source == "none"


@pytest.mark.parametrize(
    ("well", "unwell", "says"),
    [
        ({"failed": 15}, {"failed": 40}, "has no sound answer to 40, allowed 1.0%"),
        (
            {"failed": 15, "not_finite": 15},
            {"failed": 40, "not_finite": 30},
            "has no sound answer to 40 (30 with NaN or infinity), allowed 1.0%",
        ),
        ({"changed": 300}, {"changed": 400}, "answers 400 with another label than the champion, allowed 30.0%"),
        ({"unsure": 150}, {"unsure": 300}, "is unsure of 300, the champion of 50, allowed 10.0% more"),
    ],
)
def test_each_bound_has_two_sides(well: dict[str, int], unwell: dict[str, int], says: str) -> None:
    assert judge(WELL.model_copy(update=well), POLICY) is None
    assert judge(WELL.model_copy(update=unwell), POLICY) == f"of 1000 captured images the candidate {says}"


def test_the_evidence_in_one_line() -> None:
    assert describe(WELL) == (
        "1000 captured images replayed: 0 without a sound answer, 100 of 1000 with another label, "
        "unsure of 50 (champion: 50)"
    )
