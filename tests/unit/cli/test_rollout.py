"""`rollout`: what is on its way and what its evidence says, and orders that ask before what cannot be taken back."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop.stages import release

from .conftest import Run


@pytest.fixture
def world(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Version 1 serves; version 2 went through its canary and waits to be promoted or taken back."""
    project.write_text(PROJECT)
    with World(tmp_path / "world").serving() as made:
        made.release(1)
        inputs = made.inputs(made.candidate(2, bias=0.1))
        release.preflight(made.project, inputs, made.stores)
        monkeypatch.setattr("visionloop.stores.connect", lambda settings: made.connect())
        yield made


def test_the_status_of_nothing(run: Run, world: World) -> None:
    run("rollout abort p --yes --reason x")
    shown = run("rollout status p").out
    assert re.fullmatch(
        r"p: version 1 serves; no release is in progress\n"
        r"last: version 2 rolled back at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: called off by \S+: x\n",
        shown.partition("it costs")[0],
    )
    for command in ("pause p --reason x", "promote p --yes --reason x", "abort p --yes --reason x"):
        shown = run(f"rollout {command}")
        assert (shown.code, shown.err) == (1, "error: no release of p is in progress\n")


def test_the_status_shows_the_evidence_and_the_orders(run: Run, world: World) -> None:
    state = json.loads(run("rollout status p --json").out)["state"]
    assert run("rollout pause p --reason", "the line is down").code == 0
    shown = run("rollout status p").out
    assert shown.startswith("p: version 1 serves; version 2 is in its canary with 0 % of the traffic, paused\n")
    assert "requests failed" in shown
    assert re.search(r"\nmemory: 60 MiB at most, after 1\d\d requests\n", shown)
    assert ": the line is down\n" in shown
    assert run("rollout resume p --reason", "the line is up").code == 0
    inputs = release.Inputs(candidate=state["candidate"], approval=state["approval"])
    release.canary(world.project, inputs, world.stores)
    found = json.loads(run("rollout status p --json").out)
    assert [one["finding"] for one in found["findings"]] == ["fine", "fine", "fine"]
    assert found["state"]["phase"] == "promoting"
    assert [order["verb"] for order in found["state"]["orders"]] == ["pause", "resume"]


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_promotion_without_evidence_asks_first(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, said: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    shown = run("rollout promote p --reason urgent")
    assert shown.code == code
    assert "version 2 has still to be shown to be well in: requests failed, answers differ" in shown.err
    assert bool(release.status(world.project, world.stores).state.orders) == (code == 0)


def test_history_tells_what_became_of_each(run: Run, world: World) -> None:
    run("rollout abort p --yes --as lea --reason [x]")
    found = json.loads(run("rollout history p --json").out)
    assert [(one["version"], one["outcome"], one["previous_version"]) for one in found] == [
        (2, "rolled_back", 1),
        (1, "promoted", None),
    ]
    assert found[0]["reason"] == "called off by lea: [x]"
    assert [one["version"] for one in json.loads(run("rollout history p --json --last 1").out)] == [2]
    shown = run("rollout history p").out
    assert "rolled back" in shown
    assert "[x]" in shown


def test_abort_says_what_goes_on_serving(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    shown = run("rollout abort p --reason x")
    assert "version 2 of p is called off, version 1 goes on serving. Do it? [y/N]" in shown.err
    assert release.status(world.project, world.stores).version == 2
    shown = run("rollout abort p --yes --reason", "wrong week")
    assert shown.code == 0
    assert shown.out.startswith("p: version 2 is called off by ")
    assert shown.out.endswith(": wrong week\n")


def test_orders_keep_who_gave_them(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert "pause by lea is written down" in run("rollout pause p --as lea --reason x").out
    assert "resume by ann is written down" in run("rollout resume p --reason x").out
    assert [one.by for one in release.status(world.project, world.stores).state.orders] == ["lea", "ann"]
    assert run("rollout abort p --as bob --yes --reason x").out == "p: version 2 is called off by bob: x\n"


def test_orders_as_json(run: Run, world: World) -> None:
    given = [json.loads(run(f"rollout {verb} p --as lea --reason x --json").out) for verb in ("pause", "resume")]
    given.append(json.loads(run("rollout promote p --as lea --reason x --yes --json").out))
    assert given == [
        order.model_dump(mode="json") for order in release.status(world.project, world.stores).state.orders
    ]
    assert [order["verb"] for order in given] == ["pause", "resume", "promote"]


# --- doctor


def test_the_doctor_names_and_mends_what_differs(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run("rollout abort p --yes --reason x")
    monkeypatch.setenv("VISIONLOOP_STABLE_GRPC", "127.0.0.1:1")
    assert "ok   p: records, registry, weights and lanes agree" in run("doctor").out
    world.registry.alias = None
    shown = run("doctor")
    assert shown.code == 1
    line = "p: the registry's champion is nothing, released is version 1"
    assert f"FAIL {line} -> --repair: the alias is set" in shown.out
    assert world.registry.alias is None
    assert f"ok   {line} -> the alias is set" in run("doctor --repair").out
    assert world.registry.alias == 1
    world.stable.down = True
    shown = run("doctor --json")
    [found] = [one for one in json.loads(shown.out) if one["name"] == "p"]
    assert (found["ok"], shown.code) == (False, 1)
    assert found["found"].startswith("cannot be looked at: Triton of the stable lane")


def test_the_status_says_what_the_candidate_costs(run: Run, world: World) -> None:
    """A millisecond an image in both lanes, and no price."""
    line = "it costs 1 s of one instance per 1,000 images (no money: the project has no `price`), 1.00x the champion's"
    assert line in run("rollout status p").out
    assert json.loads(run("rollout status p --json").out)["cost"]["seconds_per_1000"] == pytest.approx(1.0)
