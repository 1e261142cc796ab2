"""Releases on real Triton lanes behind a real Envoy: no request fails, whatever the candidate is."""

import re
import signal
import threading
import time
from datetime import UTC, datetime

import pytest

from tests.unit.stages.made import training_run
from visionloop.errors import Conflict, IntegrityError, StageError, StoreError
from visionloop.records import Release, RetrainState, RolloutState
from visionloop.stages import release
from visionloop.stages.release import RollbackInputs
from visionloop.stages.release.rollout import open_rollout

from . import tiny
from .conftest import make_project
from .world import Traffic, World

BACK = RollbackInputs(by="sre", reason="complaints")


def world(servers, name: str) -> World:
    return World(servers, make_project(servers, name))


def test_a_first_release_and_a_second_one_under_load_fail_no_request(running):
    here = world(running, "walk")
    first = here.release(1)
    assert (first.outcome, first.previous_version, [s.canary_percent for s in first.steps]) == ("promoted", None, [100])
    assert here.versions() == {("stable", 1): 40}
    with Traffic(here) as traffic:
        second = here.release(2, bias=0.5)
        time.sleep(0.3)
    assert traffic.failures == []
    assert {("stable", 1), ("canary", 2), ("stable", 2)} <= traffic.seen.keys()
    assert (second.outcome, second.previous_version) == ("promoted", 1)
    assert [s.canary_percent for s in second.steps] == [20, 60]
    for step in second.steps:
        stable, canary = step.lanes
        assert canary.probes >= 60
        assert canary.requests >= canary.probes
        assert (canary.errors, canary.disagreements, stable.errors, stable.disagreements) == (0, 0, 0, 0)
        assert canary.latency_p95_ms >= canary.latency_p50_ms > 0
    assert here.registry.aliases["walk"] == 2
    assert here.registry.tags["walk", 2]["visionloop.decision"] == "approved"
    assert here.stores.canary.served("walk") is None
    assert here.stores.state.read(RolloutState, "walk", "rollout").phase == "idle"
    assert [p.name for p in here.stores.stable.entry("walk").folder.iterdir() if p.is_dir()] == ["2"]


def test_a_finished_release_returns_its_record_from_every_stage(running):
    here = world(running, "again")
    first = here.release(1)
    inputs = release.Inputs(candidate=first.candidate, approval=first.approval)
    for stage in (release.preflight, release.canary, release.promote):
        assert stage(here.project, inputs, here.connect()) == first
    assert len(here.stores.ledger.all(Release, "again")) == 1


def test_a_model_that_triton_refuses_changes_nothing(running):
    here = world(running, "corrupt")
    here.release(1)
    with Traffic(here) as traffic:
        refused = release.preflight(here.project, here.inputs(here.candidate(2, corrupt=True)), here.stores)
    assert refused.outcome == "rejected"
    assert "refused corrupt" in refused.reason
    assert "\n" not in refused.reason
    assert traffic.failures == []
    assert set(traffic.seen) == {("stable", 1)}
    assert here.registry.aliases["corrupt"] == 1
    assert not here.stores.canary.entry("corrupt").folder.exists()


def test_a_model_that_answers_otherwise_than_offline_is_refused(running):
    here = world(running, "liar")
    refused = here.release(1, wrong_golden=True)
    assert refused.outcome == "rejected"
    assert "otherwise than offline" in refused.reason
    assert here.stores.routes.current("liar") is None


def test_a_model_that_answers_some_images_with_nan_is_refused(running):
    here = world(running, "nan")
    here.release(1)
    refused = release.preflight(here.project, here.inputs(here.candidate(2, dark_is_nan=True)), here.stores)
    assert refused.outcome == "rejected"
    assert re.search(r"answers a black image with \[nan nan nan\]: expected probabilities", refused.reason)
    assert here.versions() == {("stable", 1): 40}


def test_a_model_with_an_output_for_a_class_that_nobody_knows_is_refused(running):
    here = world(running, "shape")
    here.release(1)
    refused = release.preflight(here.project, here.inputs(here.candidate(2, classes=4)), here.stores)
    assert refused.outcome == "rejected"
    assert "answers 4 images with [4, 4] numbers, expected [4, 3]: one for each class" in refused.reason
    assert here.versions() == {("stable", 1): 40}


def test_a_model_that_is_three_times_slower_is_refused(running):
    here = world(running, "slow")
    here.project = here.project.model_copy(
        update={"release": here.project.release.model_copy(update={"max_latency_ratio": 2.0})}
    )
    here.release(1, busy=4)
    refused = release.preflight(here.project, here.inputs(here.candidate(2, busy=16)), here.stores)
    assert refused.outcome == "rejected"
    assert re.search(r"takes [\d.]+ ms for a batch, the stable lane [\d.]+ ms: [\d.]+ times", refused.reason)
    assert release.preflight(here.project, here.inputs(here.candidate(3, busy=4)), here.connect()).phase == "canary"
    assert here.versions() == {("stable", 1): 40}


def test_an_artifact_that_was_changed_after_the_approval_is_not_loaded(running):
    here = world(running, "tampered")
    candidate = here.candidate(1)
    inputs = here.inputs(candidate)
    other = tiny.tiny_onnx(running.folder / "evil.onnx", flipped=True).read_bytes()
    here.stores.objects.put("tampered/artifacts/candidate/v1/model.onnx", other)
    with pytest.raises(IntegrityError, match="it was changed"):
        release.preflight(here.project, inputs, here.stores)
    assert here.stores.canary.served("tampered") is None


def test_a_rejected_candidate_is_not_loaded(running):
    here = world(running, "refused")
    candidate = here.candidate(1)
    approval = here.stores.ledger.uri(here.approve(candidate, "rejected"))
    done = release.preflight(here.project, release.Inputs(candidate=candidate, approval=approval), here.stores)
    assert done.outcome == "rejected"
    assert here.stores.canary.served("refused") is None


def test_rollback_loads_the_version_before_and_a_failing_one_changes_nothing(running):
    here = world(running, "back")
    here.release(1)
    second = here.release(2, bias=0.5)
    with Traffic(here) as traffic:
        began = time.monotonic()
        back = release.rollback(here.project, BACK, here.stores)
        assert time.monotonic() - began <= 5
    assert traffic.failures == []
    assert (back.version, back.previous_version, back.outcome) == (1, 2, "promoted")
    assert "complaints" in back.reason
    assert here.versions() == {("stable", 1): 40}
    assert here.registry.aliases["back"] == 1
    with pytest.raises(StageError, match="before the first one"):
        release.rollback(here.project, BACK, here.stores)
    here.stores.objects.put("back/artifacts/candidate/v2/model.onnx", b"gone bad")
    with pytest.raises(IntegrityError):
        release.rollback(here.project, BACK.model_copy(update={"to_version": 2}), here.stores)
    assert here.versions() == {("stable", 1): 40}
    assert second.version == 2


def test_versions_are_asked_as_they_were_packaged_when_the_file_allows_more_by_now(running):
    here = world(running, "resized")
    small = here.project.serving.model_copy(update={"max_batch_size": 4})
    here.project = here.project.model_copy(update={"serving": small})
    here.release(1)
    here.project = here.project.model_copy(update={"serving": small.model_copy(update={"max_batch_size": 64})})
    done = here.release(2, bias=0.5)
    assert done.outcome == "promoted", done.reason
    assert done.cost.batch_images == 4 and done.cost.ratio > 0
    back = release.rollback(here.project, BACK, here.stores)
    assert (back.version, back.outcome) == (1, "promoted")
    assert here.versions() == {("stable", 1): 40}


def test_a_killed_release_goes_on_in_another_process(running):
    here = world(running, "killed")
    here.release(1)
    inputs = here.inputs(here.candidate(2, bias=0.5))
    release.preflight(here.project, inputs, here.stores)
    stores = here.connect()
    real_advance = stores.state.update

    def die_after_the_first_step(kind, project, name, change):
        state = real_advance(kind, project, name, change)
        if len(getattr(state, "steps", [])) == 1:
            raise KeyboardInterrupt
        return state

    stores.state.update = die_after_the_first_step
    with pytest.raises(KeyboardInterrupt):
        release.canary(here.project, inputs, stores)
    assert here.stores.state.read(RolloutState, "killed", "rollout").canary_percent == 20
    assert release.preflight(here.project, inputs, here.connect()).phase == "canary"
    release.canary(here.project, inputs, here.connect())
    done = release.promote(here.project, inputs, here.connect())
    assert done.outcome == "promoted"
    assert [s.canary_percent for s in done.steps] == [20, 60]


def test_rollback_calls_off_a_canary_in_progress(running):
    here = world(running, "calledoff")
    here.release(1)
    inputs = here.inputs(here.candidate(2, bias=0.5))
    release.preflight(here.project, inputs, here.stores)
    state = release.canary(here.project, inputs, here.stores)
    assert isinstance(state, RolloutState), state
    assert here.stores.routes.current("calledoff").canary == 60
    off = release.rollback(here.project, BACK, here.stores)
    assert (off.version, off.outcome) == (2, "rolled_back")
    assert here.versions() == {("stable", 1): 40}
    assert release.promote(here.project, inputs, here.stores) == off


def test_rollback_undoes_a_promotion_that_was_killed_half_way(running):
    """The stable lane has loaded version 2, nobody has written that down: version 1 comes back under load."""
    here = world(running, "halfway")
    here.release(1)
    inputs = here.inputs(here.candidate(2, bias=0.5))
    release.preflight(here.project, inputs, here.stores)
    release.canary(here.project, inputs, here.stores)
    stores = here.connect()
    real_load = stores.stable.load

    def die_after_the_load(model):
        real_load(model)
        raise KeyboardInterrupt

    stores.stable.load = die_after_the_load
    with pytest.raises(KeyboardInterrupt):
        release.promote(here.project, inputs, stores)
    assert here.stores.stable.served("halfway") == 2
    with Traffic(here) as traffic:
        off = release.rollback(here.project, BACK, here.stores)
    assert traffic.failures == []
    assert (off.version, off.outcome) == (2, "rolled_back")
    assert here.versions() == {("stable", 1): 40}
    assert here.registry.aliases["halfway"] == 1
    assert release.promote(here.project, inputs, here.connect()) == off


def test_a_newer_candidate_takes_over_and_the_older_process_stops(running):
    here = world(running, "newer")
    here.release(1)
    old = here.inputs(here.candidate(2, bias=0.5))
    release.preflight(here.project, old, here.stores)
    new = here.inputs(here.candidate(3, bias=0.7))
    release.preflight(here.project, new, here.connect())
    assert release.canary(here.project, old, here.stores).outcome == "rolled_back"
    older = here.inputs(here.candidate(2, bias=0.9, key="v2-again"))
    with pytest.raises(StageError, match="newer, is being released"):
        release.preflight(here.project, older, here.stores)


def test_the_retrain_request_is_closed_by_the_release_that_answers_it(running):
    here = world(running, "asked")
    request = f"{here.stores.objects.root}/asked/records/trigger_decision/req1.json"
    run = training_run("run1", project="asked", retrain_request=request)
    here.stores.ledger.put(run)
    unasked = here.stores.ledger.put(run.model_copy(update={"id": "run0", "retrain_request": None}))
    here.stores.state.update(RetrainState, "asked", "retrain", lambda _: RetrainState(request=request))
    other = here.release(1, training_run=here.stores.ledger.uri(unasked))
    assert here.stores.state.read(RetrainState, "asked", "retrain").request == request
    done = here.release(2, training_run=here.stores.ledger.uri(run))
    state = here.stores.state.read(RetrainState, "asked", "retrain")
    assert (state.request, state.closed_by) == (None, here.stores.ledger.uri(done))
    assert other.outcome == "promoted"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_canary_that_dies_costs_no_request_and_is_rolled_back(own_servers, blow):
    here = world(own_servers, "dying")
    here.release(1)
    inputs = here.inputs(here.candidate(2, bias=0.5))
    release.preflight(here.project, inputs, here.stores)
    struck = []

    def strike():
        own_servers.kill("canary", blow)
        struck.append(datetime.now(UTC))

    threading.Timer(0.2, strike).start()
    with Traffic(here) as traffic:
        done = release.canary(here.project, inputs, here.stores)
    assert done.outcome == "rolled_back"
    assert (done.created_at - struck[0]).total_seconds() <= 10  # the weight goes before the record is written
    assert traffic.failures == []
    assert here.versions() == {("stable", 1): 40}
    assert here.registry.aliases["dying"] == 1


def test_a_stable_lane_that_is_down_stops_a_release_before_it_begins(own_servers):
    here = world(own_servers, "alone")
    here.release(1)
    own_servers.kill("stable")
    inputs = here.inputs(here.candidate(2))
    with pytest.raises(StoreError, match="Triton of the stable lane"):
        release.preflight(here.project, inputs, here.stores)
    own_servers.start_lane("stable")
    assert here.versions() == {("stable", 1): 40}
    assert release.preflight(here.project, inputs, here.connect()).phase == "canary"


def test_conflict_is_what_a_superseded_process_gets(running):
    here = world(running, "lost")
    inputs = here.inputs(here.candidate(1))
    release.preflight(here.project, inputs, here.stores)
    rollout = open_rollout(here.project, inputs, here.stores)
    here.stores.state.update(RolloutState, "lost", "rollout", lambda _: RolloutState())
    with pytest.raises(Conflict, match="taken over"):
        rollout.advance(phase="promoting")
