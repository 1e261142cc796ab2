"""Who decided, when and why is written once, about this very model, by somebody who may."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.serving.lanes import PROJECT, World
from visionloop import layout
from visionloop.errors import IntegrityError, NotFound, StoreError
from visionloop.records import Approval, Candidate


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def automatic(folder: Path) -> World:
    return World(folder, project=PROJECT.replace("approval: required", "approval: automatic"))


def test_who_when_and_why_stand_in_the_record_and_on_the_version(world: World) -> None:
    candidate = world.candidate(3)
    found = world.approve(candidate, by="bob", reason="better in the dark")
    assert (found.decision, found.mode, found.by, found.reason) == ("approved", "human", "bob", "better in the dark")
    assert abs(datetime.now(UTC) - found.created_at) < timedelta(minutes=1)
    assert found.candidate == candidate
    record = world.stores.ledger.get(Candidate, candidate)
    assert found.model_sha256 == record.model_sha256
    stored = world.stores.objects.get(world.stores.objects.key(candidate))
    assert found.input_digests == {"candidate": hashlib.sha256(stored).hexdigest()}
    assert world.registry.tags == {
        3: {
            "visionloop.approval": world.stores.ledger.uri(found),
            "visionloop.decision": "approved",
            "visionloop.decided_by": "bob",
            "visionloop.decided_at": found.created_at.isoformat(),
            "visionloop.decision_mode": "human",
            "visionloop.decision_reason": "better in the dark",
        }
    }
    assert world.registry.alias is None  # a decision is no release


def test_the_first_decision_stands(world: World, caplog: pytest.LogCaptureFixture) -> None:
    candidate = world.candidate(3)
    first = world.approve(candidate, reason="one")
    assert world.approve(candidate, reason="two") == first
    assert world.approve(candidate, decision="rejected", by="bob", reason="three") == first
    assert "approved by ann before: that stands" in caplog.text
    assert world.stores.ledger.all(Approval, "p") == [first]
    assert world.registry.tags[3]["visionloop.decision_reason"] == "one"


def test_a_kill_before_the_tag_is_mended_by_running_again(world: World) -> None:
    candidate = world.candidate(3)
    first = world.approve(candidate)
    world.registry.tags.clear()
    assert world.approve(candidate) == first
    assert world.registry.tags[3]["visionloop.decided_by"] == "ann"


def test_a_registry_that_is_down_loses_no_decision(world: World) -> None:
    candidate = world.candidate(3)
    world.registry.down = True
    with pytest.raises(StoreError, match="MLflow"):
        world.approve(candidate, by="bob")
    world.registry.down = False
    assert world.approve(candidate, by="ann").by == "bob"
    assert world.registry.tags[3]["visionloop.decided_by"] == "bob"


@pytest.mark.parametrize(("by", "decision", "fine"), [("eve", "approved", False), ("eve", "rejected", True)])
def test_only_approvers_approve_and_anybody_may_say_no(world: World, by: str, decision: str, fine: bool) -> None:
    """A time-out rejects as `visionloop`."""
    candidate = world.candidate(3)
    if fine:
        assert world.approve(candidate, by=by, decision=decision).decision == "rejected"
        return
    with pytest.raises(IntegrityError, match="eve is none of the approvers of p: ann, bob"):
        world.approve(candidate, by=by, decision=decision)
    assert world.stores.ledger.all(Approval, "p") == []
    assert world.registry.tags == {}


def test_nobody_approves_where_a_person_must(world: World, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="p asks for a person's approval"):
        world.approve(world.candidate(3), by="visionloop", mode="automatic")
    allowed = automatic(tmp_path / "other")
    found = allowed.approve(allowed.candidate(3), by="visionloop", mode="automatic")
    assert (found.mode, found.by) == ("automatic", "visionloop")
    assert allowed.registry.tags[3]["visionloop.decision_mode"] == "automatic"


def test_the_model_that_was_shown_is_the_one_that_is_approved(world: World) -> None:
    candidate = world.candidate(3)
    sha256 = world.stores.ledger.get(Candidate, candidate).model_sha256
    with pytest.raises(IntegrityError, match=r"the decision is about the model 0000.*all three must be the same"):
        world.approve(candidate, model_sha256="0000")
    assert world.approve(candidate, model_sha256=sha256).model_sha256 == sha256


def test_a_candidate_whose_artifact_is_another_model_is_not_approved(world: World) -> None:
    record = world.stores.ledger.get(Candidate, world.candidate(3))
    forged = record.model_copy(update={"id": "forged", "model_sha256": "1" * 64})
    uri = world.stores.ledger.uri(world.stores.ledger.put(forged))
    with pytest.raises(IntegrityError, match="its artifact is"):
        world.approve(uri)
    empty = record.model_copy(update={"id": "empty", "artifacts": {}})
    with pytest.raises(IntegrityError, match="its artifact is no model"):
        world.approve(world.stores.ledger.uri(world.stores.ledger.put(empty)))


def test_another_projects_candidate_is_refused(world: World) -> None:
    record = world.stores.ledger.get(Candidate, world.candidate(3))
    other = world.stores.ledger.put(record.model_copy(update={"project": "q"}))
    with pytest.raises(IntegrityError, match="is of project q, not p"):
        world.approve(world.stores.ledger.uri(other))


def test_a_candidate_that_does_not_exist_is_named(world: World) -> None:
    with pytest.raises(NotFound, match="none"):
        world.approve(world.stores.objects.uri(layout.record("p", "candidate", "none")))
