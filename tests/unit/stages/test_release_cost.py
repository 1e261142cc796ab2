"""What a release records of cost: candidate and champion in turns, before any client's request, from Triton's times."""

from pathlib import Path

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.records import Cost, Release
from visionloop.serving.cost import Runs
from visionloop.stages import release
from visionloop.stages.release import RollbackInputs, costs

PRICED = PROJECT + "price: {per_hour: 3.6, currency: EUR}\n"


def test_candidate_and_champion_are_timed_in_turns_and_the_record_has_both(tmp_path: Path) -> None:
    with World(tmp_path, project=PRICED).serving() as world:
        first = world.release(1, image_ms=2.0)
        second = world.release(2, bias=0.1, image_ms=1.5)
    assert first.cost is not None and second.cost is not None
    assert first.cost.seconds_per_1000 == pytest.approx(2.0)
    assert (first.cost.champion_seconds_per_1000, first.cost.ratio) == (None, None)
    assert first.cost.per_1000 == pytest.approx(0.002)
    assert second.cost.seconds_per_1000 == pytest.approx(1.5)
    assert second.cost.ratio == pytest.approx(0.75)
    assert second.cost.champion_per_1000 == pytest.approx(0.002)


def test_as_many_rounds_in_each_lane(tmp_path: Path) -> None:
    with World(tmp_path).serving() as world:
        world.release(1)
        before = world.stable.runs["p", 1][4].count
        inputs = world.inputs(world.candidate(2, bias=0.1))
        release.preflight(world.project, inputs, world.stores)
        timed = 15  # by the check of speed, in each lane
        assert world.stable.runs["p", 1][4].count - before == timed + costs.ROUNDS
        assert world.canary.runs["p", 2][4].count == 1 + 1 + timed + costs.ROUNDS  # four golden, four extreme images


def test_without_a_price_there_are_seconds_and_no_money(tmp_path: Path) -> None:
    with World(tmp_path).serving() as world:
        found = world.release(1).cost
    assert found is not None
    assert (found.price_per_hour, found.per_1000) == (None, None)
    assert found.seconds_per_1000 == pytest.approx(1.0)


def test_it_is_measured_once_and_shown_while_the_release_is_on_its_way(tmp_path: Path) -> None:
    with World(tmp_path, project=PRICED).serving() as world:
        world.release(1)
        inputs = world.inputs(world.candidate(2, bias=0.1, image_ms=3.0))
        release.preflight(world.project, inputs, world.stores)
        shown = release.status(world.project, world.stores).cost
        runs = world.canary.runs["p", 2][4].count
        release.preflight(world.project, inputs, world.connect())
        assert world.canary.runs["p", 2][4].count == runs
        assert shown is not None and shown.ratio == pytest.approx(3.0)
        release.abort(world.project, RollbackInputs(by="sre", reason="too dear"), world.stores)
        assert world.releases()[-1].cost == shown
        after = release.status(world.project, world.stores)
    assert after.version is None
    assert after.cost is not None and after.cost.seconds_per_1000 == pytest.approx(1.0)


def test_a_lane_whose_runs_were_all_of_another_size_leaves_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(tmp_path).serving() as world:
        monkeypatch.setattr(world.canary, "batches", lambda model, version: {1: Runs(9, 9.0)})
        done = world.release(1)
    assert (done.outcome, done.cost) == ("promoted", None)


def test_a_record_from_before_there_were_costs_is_read(tmp_path: Path) -> None:
    with World(tmp_path).serving() as world:
        done = world.release(1)
    old = done.model_dump(mode="json", exclude={"cost"})
    assert Release.model_validate(old).cost is None
    assert isinstance(Release.model_validate_json(done.model_dump_json()).cost, Cost)
