"""Answers of champion and candidate to the same captured images: counted by hand, both sides of each bound."""

import numpy as np
import pytest

from visionloop.project import Release as Policy
from visionloop.records import ShadowEvidence
from visionloop.serving.replay import describe, hold_together, judge

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
    assert describe(found) == "no captured traffic to replay"
    assert judge(found, POLICY) is None


def test_requests_that_all_failed_are_evidence_too() -> None:
    none = np.empty((0, 3), np.float32)
    found = hold_together(none, none, failed=20)
    assert (found.source, found.failed) == ("replayed", 20)
    assert judge(found, POLICY) == "of 20 captured images the candidate has no sound answer to 20, allowed 1.0%"


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
