"""A release, killed anywhere and run again: one record, one champion, and the old version serves until the new does."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.unit.serving.endpoint import Failed
from tests.unit.serving.lanes import PROJECT, Killed, World
from tests.unit.stages.made import signing_keys
from visionloop import layout
from visionloop.errors import Conflict, IntegrityError, StageError, StoreError
from visionloop.records import Approval, Candidate, Release, RetrainState, RolloutState
from visionloop.serving.memory import MIB
from visionloop.serving.repository import Entry
from visionloop.stages import release
from visionloop.stages.release import Inputs, RollbackInputs
from visionloop.stages.release.rollout import open_rollout
from visionloop.stores.routes import Weights
from visionloop.stores.triton import ModelRefused

BACK = RollbackInputs(by="sre", reason="complaints since noon")
FAILING = Failed(grpc.StatusCode.INTERNAL, "Stub process is not healthy", "canary")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path).serving() as made:
        yield made


def state(world: World) -> RolloutState:
    return world.stores.state.read(RolloutState, "p", "rollout") or RolloutState()


def check(world: World, version: int | None) -> None:
    """This version serves, alone, everywhere."""
    assert world.stable.served("p") == version
    assert world.stable.entry("p").version() == version
    assert world.canary.served("p") is None
    assert world.canary.entry("p").config() is None
    assert world.routes.current("p") in ({None, Weights(100, 0)} if version is None else {Weights(100, 0)})
    assert world.registry.alias == version
    assert state(world).phase == "idle"
    assert state(world).candidate is None


# --- the way through


def test_the_first_release_takes_all_the_traffic_since_nothing_serves(world: World) -> None:
    done = world.release(1)
    assert (done.outcome, done.version, done.previous_version) == ("promoted", 1, None)
    assert [step.canary_percent for step in done.steps] == [100]
    assert done.reason.startswith("canary steps passed: 1; ")
    check(world, 1)


def test_a_second_release_goes_through_the_steps_of_the_project_file(tmp_path: Path) -> None:
    text = PROJECT.replace("[50]", "[40, 70]")
    with World(tmp_path, project=text).serving() as world:
        world.release(1)
        world.routes.history.clear()
        done = world.release(2, bias=0.1)
    assert (done.outcome, done.version, done.previous_version) == ("promoted", 2, 1)
    assert [step.canary_percent for step in done.steps] == [40, 70]
    assert world.routes.history == [(60, 40), (30, 70), (100, 0)]
    for step in done.steps:
        stable, canary = step.lanes
        assert (stable.lane, canary.lane, step.outcome) == ("stable", "canary", "passed")
        assert canary.requests >= canary.probes >= 20
        assert (canary.errors, canary.disagreements, stable.disagreements) == (0, 0, 0)
    check(world, 2)


def test_the_record_names_candidate_approval_and_model(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    done = world.go(inputs)
    assert (done.candidate, done.approval) == (inputs.candidate, inputs.approval)
    assert done.model_sha256 == world.stores.ledger.get(Candidate, inputs.candidate).model_sha256
    approval = world.stores.ledger.get(Approval, inputs.approval)
    said = (approval.by, approval.created_at, approval.reason)
    assert (done.decided_by, done.decided_at, done.decision_reason) == said
    assert set(done.input_digests) == {"candidate", "approval"}
    assert world.registry.tags[1]["visionloop.release"] == world.stores.ledger.uri(done)


def test_the_alias_moves_last(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2))
    release.preflight(world.project, inputs, world.stores)
    assert (world.canary.served("p"), world.routes.current("p"), world.registry.alias) == (2, Weights(100, 0), 1)
    release.canary(world.project, inputs, world.stores)
    assert (world.stable.served("p"), world.routes.current("p"), world.registry.alias) == (1, Weights(50, 50), 1)
    release.promote(world.project, inputs, world.stores)
    check(world, 2)


def test_a_finished_release_returns_its_record_from_everything(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    done = world.go(inputs)
    world.routes.history.clear()
    for function in (release.preflight, release.canary, release.promote):
        assert function(world.project, inputs, world.connect()) == done
    assert world.routes.history == []
    assert world.releases() == [done]


# --- refused


def test_a_rejection_is_recorded_and_nothing_is_loaded(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2), decision="rejected", reason="worse on shirts")
    done = world.go(inputs)
    assert (done.outcome, done.reason, done.previous_version) == ("rejected", "ann rejected it: worse on shirts", 1)
    check(world, 1)


def test_a_model_that_does_not_load_is_rejected_in_preflight(world: World) -> None:
    world.release(1)
    world.routes.history.clear()
    done = world.go(world.inputs(world.candidate(2, broken=True)))
    assert (done.outcome, done.steps) == ("rejected", [])
    assert "refused p: broken" in done.reason
    assert all(canary == 0 for _, canary in world.routes.history)
    check(world, 1)


def test_a_lane_that_says_yes_and_serves_nothing_is_not_believed(world: World) -> None:
    world.canary.forgets = True
    done = world.go(world.inputs(world.candidate(1)))
    assert (done.outcome, done.reason) == ("rejected", "the canary lane serves version None, expected 1")
    check(world, None)


@pytest.mark.parametrize(("allowed", "outcome"), [(0.24, "rejected"), (0.25, "rolled_back"), (0.5, "promoted")])
def test_answers_are_held_against_the_offline_ones(tmp_path: Path, allowed: float, outcome: str) -> None:
    """One of the four golden samples is answered otherwise: too many, just as many as allowed, and clearly fewer."""
    text = PROJECT.replace("max_disagreement: 0.2", f"max_disagreement: {allowed}")
    with World(tmp_path, project=text).serving() as world:
        done = world.release(1, golden={"bias": -0.4})
        assert done.outcome == outcome
        if outcome == "rejected":
            assert "answers 1 of 4 golden samples otherwise than offline, allowed 1.0" in done.reason
        if outcome == "rolled_back":
            assert "after 1000 probes it is not shown to be as good as allowed: answers differ" in done.reason
        check(world, 1 if outcome == "promoted" else None)


@pytest.mark.parametrize("file", ["model.onnx", "config.pbtxt", "golden.npz"])
def test_a_file_that_was_changed_after_the_approval_is_not_loaded(world: World, file: str) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2))
    artifact = world.stores.ledger.get(Candidate, inputs.candidate).artifacts[file]
    world.stores.objects.put(world.stores.objects.key(artifact.uri), json.dumps({"bias": 1}).encode())
    with pytest.raises(IntegrityError, match=rf"{file}: expected SHA-256 [0-9a-f]+, found [0-9a-f]+: it was changed"):
        release.preflight(world.project, inputs, world.stores)
    assert world.canary.served("p") is None
    assert world.stable.served("p") == 1


@pytest.mark.parametrize(
    ("signed_by", "says"),
    [
        ("nobody", "version 2 of p is not signed, and nothing unsigned is loaded"),
        ("a stranger", "has no valid signature"),
    ],
)
def test_what_this_installation_has_not_signed_is_not_loaded(world: World, signed_by: str, says: str) -> None:
    world.release(1)
    if signed_by == "a stranger":
        world.sign_with(signing_keys(world.settings.home / "elsewhere")[0])
    else:
        world.sign_with(None)
    inputs = world.inputs(world.candidate(2))
    with pytest.raises(IntegrityError, match=says):
        release.preflight(world.project, inputs, world.stores)
    assert world.canary.served("p") is None
    assert world.canary.entry("p").config() is None
    assert world.stable.served("p") == 1


@pytest.mark.parametrize("when", ["before it is written", "before it is loaded"])
def test_a_lane_in_whose_entry_something_else_lies_loads_nothing(world: World, when: str) -> None:
    world.release(1)
    inputs, at = world.inputs(world.candidate(2)), world.canary.entry("p")
    stray, real = at.folder / "libtriton_onnxruntime.so", Entry.write

    def write(self: Entry, **what: Any) -> None:
        real(self, **what)
        stray.write_bytes(b"evil")

    with pytest.MonkeyPatch.context() as patch:
        if when == "before it is loaded":
            patch.setattr(Entry, "write", write)
        else:
            at.folder.mkdir(parents=True)
            stray.write_bytes(b"evil")
        with pytest.raises(
            IntegrityError, match=r"canary/p holds libtriton_onnxruntime\.so, which no signature covers"
        ):
            release.preflight(world.project, inputs, world.stores)
    assert world.canary.served("p") is None
    assert world.releases()[-1].version == 1
    stray.unlink()
    assert world.go(inputs).outcome == "promoted"


def test_the_newer_version_is_not_replaced_by_an_older_one(world: World) -> None:
    older = world.inputs(world.candidate(2))
    world.release(3)
    assert world.go(older).reason == "version 3 serves already, which is newer than 2"
    check(world, 3)


# --- preflight: memory, and a server that does not survive


def test_the_memory_of_a_good_candidate_stands_in_its_record(world: World) -> None:
    done = world.release(1)
    before, loaded, *answering = done.memory
    assert (before.processes, before.model_bytes, loaded.model_bytes) == (0, 0, 60 * MIB)
    assert len(answering) >= 3
    assert answering[-1].requests > 100


@pytest.mark.parametrize(("mib", "outcome"), [(2_048, "promoted"), (2_049, "rejected")])
def test_a_candidate_that_needs_more_memory_than_allowed_is_refused(world: World, mib: int, outcome: str) -> None:
    done = world.release(1, mib=mib)
    assert done.outcome == outcome
    if outcome == "rejected":
        says = "after 4 batches of 64: the candidate needs 2049 MiB in the canary lane (2049 MiB once loaded), allowed"
        assert done.reason.startswith(says)
        assert done.memory[1].model_bytes == 2_049 * MIB
        check(world, None)


def test_a_candidate_whose_memory_grows_with_its_requests_is_refused(world: World) -> None:
    world.release(1)
    world.canary.leaks_mib = 2
    done = world.go(world.inputs(world.candidate(2)))
    assert done.outcome == "rejected"
    assert re.match(
        r"after 32 batches of 64: memory grew by 56 MiB over 28 requests, from \d+ to \d+ MiB, allowed 32", done.reason
    )
    check(world, 1)


def test_a_champion_that_dies_is_no_evidence_about_the_candidate(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2))
    world.stable.dead = True
    with pytest.raises(StoreError, match=r"version 1, which the candidate is timed beside: .* is not healthy"):
        release.preflight(world.project, inputs, world.stores)
    world.stable.dead = False
    assert world.go(inputs).outcome == "promoted"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("dead", "the canary's server process died: it had been asked {n} times"),
        ("down", "the canary's server died while the candidate answered: Triton of the canary lane at nowhere: down"),
    ],
)
def test_a_candidate_whose_server_dies_after_100_requests_is_refused(world: World, fault: str, says: str) -> None:
    world.release(1)
    strikes_after(world, 100, fault)
    inputs = world.inputs(world.candidate(2))
    done = release.preflight(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert done.outcome == "rejected"
    assert re.fullmatch(r"after \d+ batches of 64: " + says.format(n=101), done.reason)
    assert (world.stable.served("p"), world.routes.current("p"), world.registry.alias) == (1, Weights(100, 0), 1)


def strikes_after(world: World, requests: int, fault: str) -> None:
    """The canary's model process dies, or its whole server, when so many requests have come."""
    real = world.canary.infer

    def infer(*arguments: Any, **options: Any) -> Any:
        if world.canary.asked["p"] >= requests:
            setattr(world.canary, fault, True)
        return real(*arguments, **options)

    world.canary.infer = infer  # type: ignore[method-assign]


def test_a_failed_request_of_a_server_that_lives_is_told_as_it_is(world: World) -> None:
    real = world.canary.infer

    def infer(*arguments: Any, **options: Any) -> Any:
        if world.canary.asked["p"] >= 50:
            raise ModelRefused("Triton of the canary lane refused p: out of luck")
        return real(*arguments, **options)

    world.canary.infer = infer  # type: ignore[method-assign]
    done = world.release(1)
    assert (done.outcome, done.reason) == ("rejected", "Triton of the canary lane refused p: out of luck")


def test_a_lane_whose_memory_cannot_be_read_is_no_verdict(world: World) -> None:
    def memory(*arguments: object, **options: object) -> None:
        raise ModelRefused("Triton of the canary lane refused x: unable to find backend 'python'")

    world.canary.memory = memory  # type: ignore[method-assign, assignment]
    inputs = world.inputs(world.candidate(1))
    with pytest.raises(StageError, match=r"memory cannot be read, which takes Triton's python backend: .* unable"):
        release.preflight(world.project, inputs, world.stores)
    assert world.releases() == []


# --- the approval is verified, not believed


@pytest.mark.parametrize("function", [release.preflight, release.canary, release.promote])
def test_the_approval_of_another_candidate_releases_nothing(world: World, function: Callable[..., object]) -> None:
    other = world.inputs(world.candidate(1, bias=0.3))
    forged = Inputs(candidate=world.candidate(1), approval=other.approval)
    with pytest.raises(IntegrityError, match=r"approval \w+ is about .*, expected "):
        function(world.project, forged, world.stores)
    check(world, None)


def test_an_approval_of_another_digest_releases_nothing(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    real = world.stores.ledger.get(Approval, inputs.approval)
    forged = world.stores.ledger.put(real.model_copy(update={"id": "forged", "model_sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="with the model 0000"):
        world.go(Inputs(candidate=inputs.candidate, approval=world.stores.ledger.uri(forged)))


def test_an_automatic_approval_is_not_enough_where_a_person_must(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    real = world.stores.ledger.get(Approval, inputs.approval)
    forged = world.stores.ledger.put(real.model_copy(update={"id": "forged", "mode": "automatic"}))
    with pytest.raises(IntegrityError, match="is automatic, but p asks for a person's"):
        world.go(Inputs(candidate=inputs.candidate, approval=world.stores.ledger.uri(forged)))


@pytest.mark.parametrize("by", ["eve", "visionloop"])
def test_an_approval_by_nobody_in_the_project_file_is_not_enough(world: World, by: str) -> None:
    """Who can write to the store still has to be an approver."""
    inputs = world.inputs(world.candidate(1))
    real = world.stores.ledger.get(Approval, inputs.approval)
    forged = world.stores.ledger.put(real.model_copy(update={"id": "forged", "by": by}))
    with pytest.raises(IntegrityError, match=f"by {by}, who is none of the approvers of p: ann, bob"):
        world.go(Inputs(candidate=inputs.candidate, approval=world.stores.ledger.uri(forged)))


@pytest.mark.parametrize("function", [release.canary, release.promote])
def test_no_step_is_left_out(world: World, function: Callable[..., object]) -> None:
    inputs = world.inputs(world.candidate(1))
    with pytest.raises(
        StageError, match="found nothing in progress: run preflight, shadow, canary and promote in this order"
    ):
        function(world.project, inputs, world.stores)
    release.preflight(world.project, inputs, world.stores)
    with pytest.raises(StageError, match="expected promoting, found canary"):
        release.promote(world.project, inputs, world.stores)


# --- a canary that is not well


def test_no_canary_is_compared_with_a_stable_lane_that_does_not_answer(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    world.broken["stable"] = FAILING
    with pytest.raises(StoreError, match="the stable lane answered 0 of 60 probes"):
        release.canary(world.project, inputs, world.stores)
    assert world.routes.weights["p"] == Weights(100, 0)
    world.broken.clear()
    assert world.go(inputs).outcome == "promoted"


@pytest.mark.parametrize(
    ("unwell", "says"),
    [
        ("healthy", "the canary lane fails the endpoint's checks"),
        ("errors", r"\d+ of \d+ of the canary's requests failed, allowed 20.0% more than the 0 of \d+ of the stable"),
        ("hidden", r"\d+ of \d+ of the canary's requests failed, allowed 20.0%"),
        ("answers", r"\d+ of \d+ of the canary's answers differ from those recorded offline, allowed 20.0% \(its rate"),
        ("silent", r"the canary answered 0 probes, expected 20: it is not well"),
        ("dead", r"the canary's server process died: it had been asked \d+ times"),
    ],
)
def test_a_failed_canary_loses_its_weight_and_the_old_version_never_stopped(
    world: World, unwell: str, says: str
) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    if unwell == "healthy":
        world.routes.healthy = False
    elif unwell == "errors":
        world.broken["canary"] = FAILING
    elif unwell == "hidden":  # the stable lane answered instead: only the endpoint knows
        world.routes.lane_stats = hidden_errors(world)  # type: ignore[method-assign]
    elif unwell == "dead":
        world.canary.dead, world.broken["canary"] = True, FAILING
    elif unwell == "answers":
        world.canary.loaded["p"] = (2, {"bias": -0.9})
    else:
        world.routes.set = unheard(world)  # type: ignore[method-assign]
    done = release.canary(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert done.outcome == "rolled_back"
    assert done.reason.startswith("at 50 %: ")
    assert [step.outcome for step in done.steps] == ["failed"]
    assert re.search(says, done.reason), done.reason
    assert release.promote(world.project, inputs, world.stores) == done
    check(world, 1)


@pytest.mark.parametrize(
    ("error", "answers", "longest"),
    [
        (None, 10, 20.0),
        (StoreError("Triton of the canary lane at nowhere: late"), 0, 4.0),
        (StoreError("Triton of the canary lane at nowhere: frozen later"), 1, 2.0 + 4.0),
        (ModelRefused("Triton of the canary lane refused p: out of luck"), 0, 0.0),
        (ModelRefused("Triton of the canary lane refused p: later"), 2, 2.0 + 2.0),
    ],
)
def test_a_canary_that_is_passed_by_is_waited_for_as_long_as_it_answers(
    world: World, error: Exception | None, answers: int, longest: float
) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    waited: list[float] = []
    asked: list[object] = []

    def wait_healthy(model: str, lane: str, *, seconds: float) -> bool:
        waited.append(seconds)
        return False

    def infer(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        if error and len(asked) > answers:
            raise error

    world.routes.wait_healthy = wait_healthy  # type: ignore[method-assign]
    world.canary.infer = infer  # type: ignore[method-assign, assignment]
    done = release.canary(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert done.reason == "at 50 %: the canary lane fails the endpoint's checks" + (f": {error}" if error else "")
    assert waited[0] == 0
    assert max(0.0, longest - 1) <= sum(waited) <= longest
    assert len(asked) == answers + (error is not None)


def test_a_canary_whose_memory_grows_with_its_requests_is_rolled_back(tmp_path: Path) -> None:
    with World(tmp_path, project=PROJECT.replace("step_requests: 20", "step_requests: 200")).serving() as world:
        world.release(1)
        inputs = world.inputs(world.candidate(2, bias=0.1))
        release.preflight(world.project, inputs, world.stores)
        world.canary.leaks_mib = 2
        done = release.canary(world.project, inputs, world.stores)
        assert isinstance(done, Release)
        says = r"at 50 %: memory grew by \d+ MiB over \d+ requests, from 60 to \d+ MiB, allowed 32 MiB"
        assert re.fullmatch(says, done.reason), done.reason
        check(world, 1)


def hidden_errors(world: World) -> Callable[[str], object]:
    """Each look at the counters finds more retries of the canary."""
    real = world.routes.lane_stats

    def look(model: str) -> object:
        world.routes.errors["canary"] += 10
        return real(model)

    return look


def unheard(world: World) -> Callable[..., Weights]:
    """The table says 50 %, and nobody comes: the endpoint fell back for every request."""
    real = world.routes.__class__.set

    def set_weights(project: object, *, stable: int, canary: int, **_: object) -> Weights:
        real(world.routes, project, stable=100, canary=0)  # type: ignore[arg-type]
        return Weights(stable, canary)

    return set_weights


def test_a_stable_lane_that_refuses_keeps_what_it_had(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    world.stable.load = refuses_once(world)  # type: ignore[method-assign]
    done = release.promote(world.project, inputs, world.stores)
    assert (done.outcome, done.reason) == ("rolled_back", "Triton of the stable lane refused p: not enough memory")
    check(world, 1)


def refuses_once(world: World) -> Callable[[str], None]:
    from visionloop.stores.triton import ModelRefused

    real, refused = world.stable.load, []

    def load(model: str) -> None:
        if not refused:
            refused.append(model)
            raise ModelRefused("Triton of the stable lane refused p: not enough memory")
        real(model)

    return load


def test_a_lane_that_is_down_is_no_verdict_about_the_candidate(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2))
    world.canary.down = True
    with pytest.raises(StoreError, match="canary lane"):
        release.preflight(world.project, inputs, world.stores)
    assert [r.version for r in world.releases()] == [1]
    world.canary.down = False
    assert world.go(inputs).outcome == "promoted"


def test_a_registry_that_is_down_delays_the_alias_and_nothing_else(world: World) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    world.registry.down = True
    with pytest.raises(StoreError, match="MLflow"):
        release.promote(world.project, inputs, world.stores)
    assert (world.stable.served("p"), world.routes.current("p"), world.registry.alias) == (2, Weights(100, 0), 1)
    world.registry.down = False
    assert release.promote(world.project, inputs, world.stores).outcome == "promoted"
    check(world, 2)


def test_a_stable_lane_that_lost_its_model_is_mended_before_a_release(world: World) -> None:
    world.release(1)
    world.stable.loaded.clear()
    inputs = world.inputs(world.candidate(2))
    with pytest.raises(StageError, match="`visionloop rollback p --to 1` loads it again"):
        release.preflight(world.project, inputs, world.stores)
    release.rollback(world.project, BACK.model_copy(update={"to_version": 1}), world.stores)
    check(world, 1)
    assert world.go(inputs).outcome == "promoted"


# --- one at a time


def test_a_newer_candidate_takes_over_whatever_the_older_had_done(world: World) -> None:
    world.release(1)
    old = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, old, world.stores)
    release.canary(world.project, old, world.stores)
    with pytest.raises(Killed):  # the older one's stable lane has loaded it
        release.promote(world.project, old, world.connect(dies_after=1))
    assert world.stable.served("p") == 2
    new = world.inputs(world.candidate(3, bias=0.2))
    done = world.go(new)
    assert (done.outcome, done.version, done.previous_version) == ("promoted", 3, 1)
    ended = release.promote(world.project, old, world.stores)
    assert (ended.outcome, ended.reason) == ("rolled_back", "version 3 came before it was through")
    check(world, 3)


def test_an_older_candidate_waits_for_the_newer_one(world: World) -> None:
    world.release(1)
    old, new = world.inputs(world.candidate(2)), world.inputs(world.candidate(3))
    release.preflight(world.project, new, world.stores)
    with pytest.raises(StageError, match="version 3, which is newer, is being released"):
        release.preflight(world.project, old, world.stores)


def test_a_process_that_was_overtaken_changes_nothing_more(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    release.preflight(world.project, inputs, world.stores)
    world.stores.state.update(RolloutState, "p", "rollout", lambda _: RolloutState())
    with pytest.raises(Conflict, match="version 1 was taken over"):
        open_rollout(world.project, inputs, world.stores).advance(phase="promoting")


# --- the way back


def test_rollback_serves_the_version_before_and_says_why(world: World) -> None:
    world.release(1)
    world.release(2, bias=0.1)
    done = release.rollback(world.project, BACK, world.stores)
    assert (done.version, done.previous_version, done.outcome, done.steps) == (1, 2, "promoted", [])
    assert done.reason == "version 1 serves again instead of 2, by sre: complaints since noon"
    check(world, 1)
    with pytest.raises(StageError, match=r"cannot go back to a version before the first one: released were 1, 2"):
        release.rollback(world.project, BACK, world.stores)
    again = release.rollback(world.project, BACK.model_copy(update={"to_version": 2}), world.stores)
    assert again.version == 2
    check(world, 2)


@pytest.mark.parametrize("to", [9, 0])
def test_only_released_versions_can_come_back(world: World, to: int) -> None:
    world.release(1)
    with pytest.raises(StageError, match=rf"cannot go back to version {to}: released were 1"):
        release.rollback(world.project, BACK.model_copy(update={"to_version": to}), world.stores)
    check(world, 1)


def test_without_a_release_there_is_nothing_to_go_back_to(world: World) -> None:
    with pytest.raises(StageError, match="p was never released"):
        release.rollback(world.project, BACK, world.stores)


def test_a_version_that_does_not_load_any_more_changes_nothing(world: World) -> None:
    world.release(1)
    world.release(2, bias=0.1)
    world.stable.load = refuses_once(world)  # type: ignore[method-assign]
    with pytest.raises(StageError, match=r"version 2 of p goes on serving: .* not enough memory"):
        release.rollback(world.project, BACK, world.stores)
    check(world, 2)


@pytest.mark.parametrize("until", ["preflight", "canary", "promote"])
def test_rollback_calls_off_a_release_at_any_stage(world: World, until: str) -> None:
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    if until != "preflight":
        release.canary(world.project, inputs, world.stores)
    if until == "promote":
        with pytest.raises(Killed):  # the stable lane has it already
            release.promote(world.project, inputs, world.connect(dies_after=1))
        assert world.stable.served("p") == 2
    done = release.rollback(world.project, BACK, world.stores)
    assert (done.version, done.outcome) == (2, "rolled_back")
    assert done.reason == "called off by sre: complaints since noon"
    check(world, 1)
    assert release.promote(world.project, inputs, world.stores) == done
    check(world, 1)


def test_a_rollback_at_the_moment_of_the_promotion_stands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias is about to be set, the record is not there: the rollback finishes the release, and takes it back."""
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    set_champion = world.registry.set_champion

    def and_a_rollback(project: str, version: int | None) -> None:
        monkeypatch.undo()
        release.rollback(world.project, BACK, world.stores)
        set_champion(project, version)

    monkeypatch.setattr(world.registry, "set_champion", and_a_rollback)
    assert release.promote(world.project, inputs, world.stores).outcome == "promoted"
    assert [(r.version, r.previous_version) for r in world.releases()] == [(1, None), (2, 1), (1, 2)]
    check(world, 1)


def test_a_first_release_that_is_called_off_leaves_nothing(world: World) -> None:
    inputs = world.inputs(world.candidate(1))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    assert release.rollback(world.project, BACK, world.stores).outcome == "rolled_back"
    check(world, None)


def test_a_rollback_while_promote_loads_wins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written down at once; the stable lane goes back when Triton is done."""
    monkeypatch.setattr("visionloop.stores.lane_lock.WAIT_SECONDS", 0.1)
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    real = world.stable.load

    def slow(model: str) -> None:
        world.stable.load = real  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="another process is loading p into the stable lane"):
            release.rollback(world.project, BACK, world.connect())
        real(model)

    world.stable.load = slow  # type: ignore[method-assign]
    assert release.promote(world.project, inputs, world.stores).reason == "called off by sre: complaints since noon"
    check(world, 1)


@pytest.mark.parametrize("first", [True, False])
def test_rollback_after_a_promotion_that_was_killed_at_any_change(world: World, first: bool) -> None:
    """Until its end is written down it is called off; from then on it is through, and the version before comes back."""
    if not first:
        world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.1))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    seen = set()
    for _ in world.killed_at_each_change(lambda stores: release.promote(world.project, inputs, stores)):
        through = state(world).ending is not None or any(r.version == 2 for r in world.releases())
        seen.add(through)
        if first and through:
            with pytest.raises(StageError, match="before the first one"):
                release.rollback(world.project, BACK, world.stores)
            check(world, 2)
            continue
        assert ("called off" in release.foresee(world.project, BACK, world.stores)) is not through
        done = release.rollback(world.project, BACK, world.stores)
        assert (done.version, done.outcome) == ((1, "promoted") if through else (2, "rolled_back"))
        check(world, None if first else 1)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("to", "says"),
    [
        (None, "version 1 serves instead of 2"),
        (1, "version 1 serves instead of 2"),
        (2, "version 2 is loaded again"),
    ],
)
def test_what_a_rollback_would_do(world: World, to: int | None, says: str) -> None:
    world.release(1)
    world.release(2, bias=0.1)
    assert release.foresee(world.project, BACK.model_copy(update={"to_version": to}), world.stores) == says
    check(world, 2)


def test_what_a_rollback_would_do_to_a_canary(world: World) -> None:
    first = world.inputs(world.candidate(1))
    release.preflight(world.project, first, world.stores)
    assert release.foresee(world.project, BACK, world.stores) == (
        "the release of version 1 is called off, nothing serves then"
    )
    world.go(first)
    release.preflight(world.project, world.inputs(world.candidate(2)), world.stores)
    assert release.foresee(world.project, BACK, world.stores) == (
        "the release of version 2 is called off, version 1 goes on serving"
    )
    to_one = BACK.model_copy(update={"to_version": 1})
    assert release.foresee(world.project, to_one, world.stores) == (
        "the release of version 2 is called off, version 1 is loaded again"
    )
    with pytest.raises(StageError, match="cannot go back to version 9"):
        release.foresee(world.project, BACK.model_copy(update={"to_version": 9}), world.stores)
    assert state(world).phase == "canary"


# --- what it answers


@pytest.mark.parametrize(("wanted", "answered"), [("asked", True), ("other", False), (None, False)])
def test_the_retrain_request_is_closed_by_the_release_that_was_trained_for_it(
    world: World, wanted: str | None, answered: bool
) -> None:
    request = world.stores.objects.uri(layout.record("p", "trigger_decision", "asked"))
    world.stores.state.update(RetrainState, "p", "retrain", lambda _: RetrainState(request=request))
    done = world.release(1, request=request if wanted == "asked" else wanted)
    found = world.stores.state.read(RetrainState, "p", "retrain")
    assert found is not None
    assert (found.request, found.closed_by) == ((None, world.stores.ledger.uri(done)) if answered else (request, None))
