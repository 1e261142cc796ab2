"""Stage tasks: the command of the job, the record's URI as the value, and outcomes that end a run green."""

import json
import shlex
from datetime import UTC, datetime

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from tests.unit.airflow.conftest import ROOT, TaskInstance
from visionloop.records import Check, GateDecision, TriggerDecision, Validation
from visionloop.settings import load_settings
from visionloop.stores import connect
from visionloop_airflow.settle import reason_of
from visionloop_airflow.stage import LightStageOperator, StageOperator

NAME = "p__data-validate-000-c0-a1"
RETRAIN = Asset("visionloop://p/retrain")


class Events(dict):
    """Airflow's accessor of the events that a task will emit."""

    def __missing__(self, asset):
        self[asset] = type("Event", (), {"extra": {}})()
        return self[asset]


def put(record):
    """Write a record and, as the job does, its result; returns the record's URI."""
    stores = connect(load_settings())
    stores.ledger.put(record)
    uri = stores.ledger.uri(record)
    outcome = getattr(record, "outcome", None) or getattr(record, "action", None)
    result = {"uri": uri, "kind": record.kind, "id": record.id, "outcome": outcome}
    stores.objects.put(f"p/jobs/{NAME}.json", json.dumps(result).encode())
    return uri


def gate(outcome):
    return GateDecision(id="aa", project="p", evaluation="e", outcome=outcome, reasons=["worse on shirts", "too slow"])


def trigger(action):
    reasons = ["two of three views drifted"]
    return TriggerDecision(id="bb", project="p", drift_report="d", candidate="c", action=action, reasons=reasons)


def stage(**changed):
    with DAG("p__data", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        task = StageOperator(
            **{"task_id": "validate", "project": "p", "stage": "validate", "inputs": {"ingest": "s3://b/i"}, **changed}
        )
        task >> EmptyOperator(task_id="next") >> EmptyOperator(task_id="last")
    return task


def finish(task):
    ti = TaskInstance()
    events = Events()
    context = {"ti": ti, "task": task, "outlet_events": events}
    return ti, events, lambda: task.finish(context, NAME)


def test_command_of_a_stage(ray, tmp_path):
    words = shlex.split(stage(inputs={"ingest": "s3://b/it's"}).command(NAME))
    assert words[:6] == ["python", "-m", "ray_jobs.run_stage", "validate", "--project", "p"]
    assert json.loads(words[words.index("--inputs") + 1]) == {"ingest": "s3://b/it's"}
    assert words[-2:] == ["--result", f"file://{tmp_path}/store/p/jobs/{NAME}.json"]


def test_command_of_a_module_of_its_own_names_no_stage(ray):
    words = shlex.split(stage(module="ray_jobs.train").command(NAME))
    assert words[:5] == ["python", "-m", "ray_jobs.train", "--project", "p"]


def test_the_value_is_the_uri_of_the_record(ray):
    uri = put(gate("passed"))
    ti, events, run = finish(stage(goes_on_with=["passed"]))
    assert run() == uri
    assert ti.pushed["outcome"] == {"outcome": "passed", "reason": "worse on shirts; too slow"}
    assert events == {}


def test_an_outlet_gets_the_record(ray):
    uri = put(trigger("retrain"))
    _, events, run = finish(stage(goes_on_with=["retrain"], outlets=[RETRAIN]))
    assert run() == uri
    assert events[RETRAIN].extra == {"record": uri}


def test_without_a_condition_every_outcome_goes_on(ray):
    uri = put(gate("rejected"))
    _, _, run = finish(stage())
    assert run() == uri


def test_a_rejection_is_green_and_skips_what_follows(ray):
    uri = put(gate("rejected"))
    ti, _, run = finish(stage(goes_on_with=["passed"]))
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        run()
    assert list(skipped.value.tasks) == ["next"]
    assert ti.pushed["return_value"] == uri
    assert ti.pushed["outcome"]["reason"] == "worse on shirts; too slow"


def test_with_an_outlet_the_task_itself_is_skipped_so_that_no_event_is_emitted(ray):
    uri = put(trigger("none"))
    ti, events, run = finish(stage(goes_on_with=["retrain"], outlets=[RETRAIN]))
    with pytest.raises(AirflowSkipException, match="none: two of three views drifted"):
        run()
    assert events == {}
    assert ti.pushed["return_value"] == uri


def test_a_rollout_that_goes_on_has_no_outcome_yet(ray):
    connect(load_settings()).objects.put(
        f"p/jobs/{NAME}.json", json.dumps({"uri": None, "kind": "RolloutState", "value": {"phase": "canary"}}).encode()
    )
    _, _, run = finish(stage(goes_on_with=[None, "promoted"]))
    assert run() == {"phase": "canary"}


def test_a_light_stage_runs_here(ray, monkeypatch):
    """The trigger stage on a report that has not drifted: a real stage, a real ledger."""
    from visionloop.records import DriftReport

    report = DriftReport(
        id="dd", project="fashion", window="w", candidate="c", reference_samples=9, window_samples=9, views=[],
        drifted=False, html_uri="h", json_uri="j",
    )  # fmt: skip
    monkeypatch.setenv("VISIONLOOP_PROJECTS", str(ROOT / "projects"))
    stores = connect(load_settings())
    stores.ledger.put(report)
    with DAG("fashion__monitor", start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        task = LightStageOperator(
            task_id="decide",
            project="fashion",
            target="visionloop.stages.trigger:run",
            inputs={"drift_report": stores.ledger.uri(report)},
            goes_on_with=["retrain"],
            outlets=[RETRAIN],
        )
    ti = TaskInstance()
    for _ in range(2):
        with pytest.raises(AirflowSkipException, match=r"^none: "):
            task.execute({"ti": ti, "task": task, "outlet_events": Events()})
    (decision,) = stores.ledger.all(TriggerDecision, "fashion")
    assert ti.pushed["return_value"] == stores.ledger.uri(decision)


def test_the_reason_of_a_refused_batch_names_the_checks():
    checks = [
        Check(name="min_samples", severity="error", passed=False, observed="3", expected="500"),
        Check(name="sides", severity="quarantine", passed=True, observed="28", expected="28"),
    ]
    refused = Validation(
        id="v", project="p", batch="b", outcome="refused", delivered=3, accepted=0, quarantined=3,
        reasons={"too_small": 3}, checks=checks, verdict_uri="u", report_uri="r",
    )  # fmt: skip
    assert reason_of(refused) == "check min_samples failed; too_small: 3"
