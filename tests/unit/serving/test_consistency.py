"""What differs, in one line each, and what may be put right without asking."""

from dataclasses import replace

import pytest

from visionloop.serving.consistency import Facts, LaneFacts, differences

WELL = Facts(
    released=2,
    alias=2,
    running=None,
    phase="idle",
    ended=False,
    stable=LaneFacts(2, 2),
    canary=LaneFacts(None, None),
    weights=(100, 0),
)
NEVER = replace(WELL, released=None, alias=None, stable=LaneFacts(None, None), weights=None)
CANARY = replace(WELL, running=3, phase="canary", canary=LaneFacts(3, 3), weights=(90, 10), percent=10)


@pytest.mark.parametrize(
    "facts",
    [
        WELL,
        NEVER,
        CANARY,
        replace(CANARY, phase="preflight", canary=LaneFacts(None, 3), weights=(100, 0)),
        replace(CANARY, phase="promoting", stable=LaneFacts(3, 3), weights=(50, 50)),
        replace(CANARY, weights=(100, 0), left_alone_minutes=9),
        replace(NEVER, running=1, phase="canary", canary=LaneFacts(1, 1), weights=(0, 100), percent=100),
    ],
)
def test_where_all_agree_nothing_is_said(facts: Facts) -> None:
    assert differences(facts) == []


@pytest.mark.parametrize(
    ("facts", "says", "repair"),
    [
        (replace(WELL, stable=LaneFacts(1, 1)), "the stable lane serves version 1, released is version 2", "load"),
        (replace(WELL, stable=LaneFacts(None, 2)), "the stable lane serves nothing, released is version 2", "load"),
        (replace(WELL, stable=LaneFacts(2, 1)), "the stable lane would load version 1 at its next start", "load"),
        (replace(NEVER, stable=LaneFacts(1, 1)), "the stable lane serves version 1, released is nothing", "load"),
        (replace(WELL, alias=1), "the registry's champion is version 1, released is version 2", "alias"),
        (replace(WELL, alias=None), "the registry's champion is nothing, released is version 2", "alias"),
        (replace(WELL, weights=(90, 10)), "the canary lane gets 10 % of the traffic", "weights"),
        (replace(WELL, mirrored=True), "captured requests are mirrored to the canary lane", "weights"),
        (replace(WELL, canary=LaneFacts(3, 3)), "the canary lane holds version 3", "empty_canary"),
        (replace(WELL, canary=LaneFacts(None, 3)), "the canary lane holds version 3", "empty_canary"),
        (replace(CANARY, ended=True), "the release of version 3 ended, and not all was done for it", "tidy"),
        (replace(CANARY, canary=LaneFacts(None, 3)), "version 3 is in its canary, and the canary lane serves no", None),
        (
            replace(CANARY, weights=(50, 50)),
            "the canary lane gets 50 % of the traffic, which should be 10 %",
            "weights",
        ),
        (
            replace(CANARY, phase="preflight", percent=0),
            "version 3 is in its preflight, and the canary lane gets 10 % of the traffic, which should be 0 %",
            "weights",
        ),
        (
            replace(CANARY, left_alone_minutes=11),
            "version 3 is in its canary with 10 % of the traffic, and was looked after 11 minutes ago",
            "call_off",
        ),
        (
            replace(CANARY, phase="promoting", left_alone_minutes=11, weights=(100, 0)),
            "version 3 is in its promoting, and was looked after 11 minutes ago",
            "call_off",
        ),
        (
            replace(WELL, way_back=1, left_alone_minutes=2, stable=LaneFacts(1, 1)),
            "the rollback to version 1 is under way or was cut off, 2 minutes ago",
            "way_back",
        ),
        (
            replace(CANARY, phase="shadow", weights=(100, 0), canary=LaneFacts(2, 3)),
            "is in its shadow, and the canary lane serves",
            None,
        ),
        (replace(WELL, damaged=("model.onnx",)), "model.onnx of the released version is missing or changed", None),
    ],
)
def test_each_difference_has_its_line_and_its_repair(facts: Facts, says: str, repair: str | None) -> None:
    [found] = differences(facts)
    assert says in found.text
    assert found.repair == repair
    assert "\n" not in found.text
    assert found.advice


def test_a_lane_is_not_judged_while_it_is_being_promoted() -> None:
    assert differences(replace(CANARY, phase="promoting", stable=LaneFacts(3, 3), alias=2)) == []


def test_all_is_said_in_the_order_in_which_it_is_put_right() -> None:
    worst = replace(WELL, alias=1, stable=LaneFacts(1, 1), canary=LaneFacts(3, 3), weights=(0, 100), damaged=("x",))
    assert [found.repair for found in differences(worst)] == [None, "load", "alias", "weights", "empty_canary"]
    assert [found.repair for found in differences(replace(worst, running=3, ended=True))] == [None, "tidy"]
