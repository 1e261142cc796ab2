"""Objects, ledger and state on a folder: conditional writes, write-once records, compare-and-swap."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from visionloop import layout
from visionloop.errors import ConfigError, Conflict, IntegrityError, NotFound, StoreError
from visionloop.records import GateDecision, RetrainState, record_id
from visionloop.settings import Settings
from visionloop.stores import connect
from visionloop.stores.ledger import Ledger
from visionloop.stores.objects import FileObjects, open_objects
from visionloop.stores.state import State


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    return FileObjects(tmp_path / "store")


def decision(record: str = "a1", **fields: object) -> GateDecision:
    values = {"id": record, "project": "p", "evaluation": "e", "outcome": "passed", "reasons": ["better"], **fields}
    return GateDecision.model_validate(values)


def test_put_new_never_overwrites(objects: FileObjects) -> None:
    objects.put_new("p/x", b"first")
    with pytest.raises(Conflict, match="p/x"):
        objects.put_new("p/x", b"second")
    assert objects.get("p/x") == b"first"


def test_replace_needs_what_was_read(objects: FileObjects) -> None:
    objects.put("p/x", b"1")
    _, etag = objects.get_tagged("p/x")
    objects.replace("p/x", b"2", etag)
    with pytest.raises(Conflict):
        objects.replace("p/x", b"3", etag)
    assert objects.get("p/x") == b"2"


def test_listing_and_folders(objects: FileObjects) -> None:
    for key in ("p/in/b1/x", "p/in/b2/y/z", "p/inside", "q/in/b3"):
        objects.put(key, b"12")
    assert [(item.key, item.size_bytes) for item in objects.scan("p/in/")] == [("p/in/b1/x", 2), ("p/in/b2/y/z", 2)]
    assert objects.folders("p/in/") == ["b1", "b2"]
    assert objects.folders("nothing/") == []


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "p/../../x"])
def test_keys_cannot_leave_the_store(objects: FileObjects, key: str) -> None:
    with pytest.raises(ConfigError, match="is no key"):
        objects.put(key, b"")


def test_uris_of_another_store_are_refused(objects: FileObjects) -> None:
    assert objects.key(objects.uri("p/x")) == "p/x"
    with pytest.raises(ConfigError, match="does not lie in"):
        objects.key("s3://elsewhere/p/x")


def test_absent_objects(objects: FileObjects, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="p/none"):
        objects.get("p/none")
    with pytest.raises(NotFound):
        objects.download("p/none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not objects.exists("p/none")
    objects.delete("p/none")


def test_an_upload_that_fails_leaves_nothing(objects: FileObjects, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        objects.upload(tmp_path / "missing", "p/x")
    assert list(objects.scan("p/")) == []


def test_s3_that_is_down_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.stores.objects.TRIES", 1)
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    settings = Settings(store="s3://bucket", s3_endpoint="http://127.0.0.1:9", s3_credentials=credentials)
    with pytest.raises(StoreError, match=r"S3 at http://127.0.0.1:9 cannot be reached for s3://bucket/p/x"):
        open_objects(settings).get("p/x")


def test_a_store_that_is_not_configured_says_how_to_set_it() -> None:
    with pytest.raises(ConfigError, match="VISIONLOOP_STORE is not set"):
        _ = connect(Settings()).objects
    with pytest.raises(ConfigError, match="expected s3://bucket or file:///folder"):
        open_objects(Settings(store="ftp://x"))


def test_a_record_is_written_once(objects: FileObjects) -> None:
    ledger = Ledger(objects)
    first = ledger.put(decision(reasons=["first"]))
    again = ledger.put(decision(reasons=["second"]))
    assert again == first
    assert ledger.get(GateDecision, ledger.uri(first)) == first
    assert ledger.read(ledger.uri(first)) == first
    assert ledger.find(GateDecision, "p", "none") is None


def test_a_record_that_is_not_what_its_name_says_is_refused(objects: FileObjects) -> None:
    ledger = Ledger(objects)
    stored = ledger.put(decision())
    objects.put(layout.record("p", "gate_decision", "b2"), objects.get(layout.record("p", "gate_decision", "a1")))
    with pytest.raises(IntegrityError, match="holds the gate_decision record a1"):
        ledger.get(GateDecision, ledger.uri(stored).replace("a1", "b2"))
    objects.put(layout.record("p", "gate_decision", "c3"), b"{}")
    with pytest.raises(IntegrityError, match="is no gate_decision record"):
        ledger.find(GateDecision, "p", "c3")


def test_latest_and_all_go_by_the_record_s_own_time(objects: FileObjects) -> None:
    ledger = Ledger(objects)
    assert ledger.latest(GateDecision, "p") is None
    now = datetime.now(UTC)
    ages = {"a1": 2, "b2": 0, "c3": 1}
    for name, age in ages.items():
        ledger.put(decision(name, created_at=now - timedelta(seconds=age)))
    newest = ledger.latest(GateDecision, "p")
    assert newest is not None
    assert newest.id == "b2"
    assert [record.id for record in ledger.all(GateDecision, "p")] == ["a1", "c3", "b2"]


def test_ids_depend_on_what_a_record_is_made_from() -> None:
    one = record_id("snapshot", "p", batches=["a", "b"], config="c")
    assert one == record_id("snapshot", "p", config="c", batches=["a", "b"])
    assert len({one, record_id("snapshot", "q", batches=["a", "b"], config="c"), record_id("snapshot", "p")}) == 3


def test_state_is_compare_and_swap(objects: FileObjects) -> None:
    """Twenty threads open the one request: exactly one wins, the others see it open."""
    state, winners = State(objects), []

    def open_request(name: str) -> None:
        def change(current: RetrainState | None) -> RetrainState:
            return current if current and current.request else RetrainState(request=name)

        if state.update(RetrainState, "p", "retrain", change).request == name:
            winners.append(name)

    threads = [threading.Thread(target=open_request, args=(f"r{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    stored = state.read(RetrainState, "p", "retrain")
    assert stored is not None
    assert stored.request == winners[0]


def test_a_write_whose_answer_was_lost_is_not_made_twice(objects: FileObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when S3 wrote, the connection broke, and the client's own second try finds that somebody wrote: itself."""
    real, asked = objects.replace, []

    def replace(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        raise Conflict("it was changed")

    state = State(objects)
    state.update(RetrainState, "p", "retrain", lambda _: RetrainState(request="first"))
    monkeypatch.setattr(objects, "replace", replace)

    def change(current: RetrainState | None) -> RetrainState:
        asked.append(current)
        return RetrainState(request="second")

    assert state.update(RetrainState, "p", "retrain", change).request == "second"
    assert len(asked) == 1
