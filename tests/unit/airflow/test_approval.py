"""The approval task: what it shows, whom it asks, what it writes down, and that an answer is never asked for twice."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from airflow.providers.standard.operators import hitl
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped, TaskAwaitingInput

from tests.unit.airflow.conftest import ROOT, TaskInstance
from visionloop import layout
from visionloop.project import parse_project
from visionloop.records import (
    Approval,
    Artifact,
    Candidate,
    Evaluation,
    Interval,
    Parity,
    Release,
    ScenarioResult,
    Variant,
)
from visionloop.settings import load_settings
from visionloop.stores import Stores, connect
from visionloop_airflow import approval as module
from visionloop_airflow.evidence import body, table
from visionloop_dags.factory import project_dags

SHA = "ab" * 32
CANDIDATES = Asset("visionloop://fashion/candidate", group="visionloop")


class Registry:
    """Model versions and their tags."""

    def __init__(self):
        self.tags = {}

    def tag(self, name, version, tags):
        self.tags[name, version] = tags


LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


class World:
    """An object store in a folder with an evaluation, the release DAG of a project file, and who was asked."""

    def __init__(self, tmp_path, monkeypatch, **release):
        example = yaml.safe_load((ROOT / "projects" / "fashion" / "project.yaml").read_text())
        example["release"] |= {"approvers": ["ann", "bob"], **release}
        path = tmp_path / "projects" / "fashion" / "project.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(example))
        monkeypatch.setenv("VISIONLOOP_PROJECTS", str(tmp_path / "projects"))
        self.registry = Registry()
        monkeypatch.setattr(Stores, "registry", self.registry)
        self.asked = []
        monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: self.asked.append(detail))
        self.stores = connect(load_settings())
        self.stores.ledger.put(EVALUATION)
        self.path = path

    def candidate(self, name, version=3, day=1):
        """Write a candidate; returns its URI."""
        made = CANDIDATE.model_copy(
            update={
                "id": name,
                "version": version,
                "created_at": datetime(2026, 1, day, tzinfo=UTC),
                "evaluation": self.stores.ledger.uri(EVALUATION),
            }
        )
        self.stores.ledger.put(made)
        return self.stores.ledger.uri(made)

    def context(self, *, events=(), candidate=None, starter=None, run_type="asset_triggered", run_after=LONG_AGO):
        task = project_dags(self.path)["fashion__release"].get_task("approve")
        told = [SimpleNamespace(extra={"record": uri}) for uri in events]
        ti = TaskInstance(dag_id="fashion__release", task_id="approve", id="ti")
        return {
            "ti": ti,
            "task_instance": ti,
            "task": task,
            "params": {"candidate": candidate},
            "triggering_asset_events": {CANDIDATES: told} if told else {},
            "dag_run": SimpleNamespace(triggering_user_name=starter, run_type=run_type, run_after=run_after),
        }

    def ask(self, **facts):
        """Execute until it waits; returns the context and what it hands to its own continuation."""
        context = self.context(**facts)
        with pytest.raises(TaskAwaitingInput) as waiting:
            context["task"].execute(context)
        return context, waiting.value.kwargs

    def approvals(self):
        return self.stores.ledger.all(Approval, "fashion")


@pytest.fixture
def world(ray, tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def scenario(name="overall", **changed):
    facts = {
        "name": name, "metric": "accuracy", "severity": "critical", "bar": 0.8, "bar_kind": "at_least",
        "challenger": Interval(value=0.9123, low=0.9, high=0.92, n=1000), "outcome": "passed",
    }  # fmt: skip
    return ScenarioResult(**{**facts, **changed})


EVALUATION = Evaluation(
    id="ee", project="fashion", snapshot="s", training_run="t", champion=None, test_samples=1500,
    scenarios=[scenario(), scenario("night", outcome="failed", severity="major")],
    page_uri="s3://b/fashion/artifacts/evaluation/ee/evaluation.html",
)  # fmt: skip
CANDIDATE = Candidate(
    id="cc", project="fashion", training_run="t", evaluation="ee", gate_decision="g", snapshot="s",
    model_name="fashion",
    version=3, model_sha256=SHA, classes=["a", "b"], image_shape=(28, 28, 1),
    artifacts={"model.onnx": Artifact(uri="s3://b/m", sha256=SHA, size_bytes=9)},
    parity=Parity(samples=512, max_abs_difference=2e-6, p99_abs_difference=1e-6, disagreements=0),
)  # fmt: skip


def event(chosen, by="ann", reason="better at night"):
    who = {"id": by, "name": by} if by else None
    given = {"reason": reason} if by else {}
    return {
        "chosen_options": [chosen],
        "params_input": given,
        "responded_at": datetime.now(UTC),
        "responded_by_user": who,
    }


def test_shows_the_figures_and_asks_the_approvers(world):
    uri = world.candidate("cc")
    _, kwargs = world.ask(events=[uri])
    (asked,) = world.asked
    assert asked["subject"] == "Release fashion version 3?"
    assert [user["id"] for user in asked["assigned_users"]] == ["ann", "bob"]
    assert "| overall | accuracy | critical | 91.2 % [90.0, 92.0] |" in asked["body"]
    assert SHA in asked["body"]
    assert "(/visionloop/pages/fashion__release/evaluation/ee/evaluation.html)" in asked["body"]
    assert kwargs == {"shown": {"candidate": uri, "model_sha256": SHA}}


def test_an_approval_is_written_with_who_and_why(world):
    uri = world.candidate("cc")
    context, kwargs = world.ask(events=[uri])
    given = context["task"].execute_complete(context, event("Approve"), **kwargs)
    (approval,) = world.approvals()
    assert given == {"candidate": uri, "approval": world.stores.ledger.uri(approval)}
    assert (approval.decision, approval.by, approval.reason, approval.mode, approval.model_sha256) == (
        "approved", "ann", "better at night", "human", SHA,
    )  # fmt: skip
    assert world.registry.tags["fashion", 3]["visionloop.decided_by"] == "ann"


def test_a_rejection_is_green_and_releases_nothing(world):
    context, kwargs = world.ask(events=[world.candidate("cc")])
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        context["task"].execute_complete(context, event("Reject", reason=""), **kwargs)
    assert sorted(skipped.value.tasks) == ["call_off", "canary", "preflight", "promote", "shadow"]
    (approval,) = world.approvals()
    assert (approval.decision, approval.reason) == ("rejected", "no reason given")


def tried(world, uri, approval, outcome):
    """The release of a candidate ended so."""
    world.stores.ledger.put(
        Release(
            id=f"{approval.id}-{outcome}", project="fashion", candidate=uri, approval=world.stores.ledger.uri(approval),
            version=3, model_sha256=SHA, previous_version=2, steps=[], outcome=outcome, reason="at 10 %: too slow",
        )
    )  # fmt: skip


@pytest.mark.parametrize("ended", ["rejected", "rolled_back"])
def test_a_run_by_hand_asks_again_about_what_ended(world, ended):
    uri = world.candidate("cc")
    context, kwargs = world.ask(events=[uri])
    answer = event("Reject" if ended == "rejected" else "Approve", reason="not this week")
    with suppress(DownstreamTasksSkipped):
        context["task"].execute_complete(context, answer, **kwargs)
    [first] = world.approvals()
    if ended == "rolled_back":
        tried(world, uri, first, ended)
    said = "It was **rejected** before, by ann: not this week"
    if ended == "rolled_back":
        said = "It was **rolled back** before: at 10 %: too slow"
    with suppress(DownstreamTasksSkipped):  # an event asks nobody twice
        world.context(events=[uri])["task"].execute(world.context(events=[uri]))
    assert len(world.asked) == 1
    by_hand = {"candidate": uri, "run_type": "manual", "run_after": datetime.now(UTC), "starter": "zoe"}
    context, kwargs = world.ask(**by_hand)
    assert world.asked[-1]["body"].startswith(said)
    given = context["task"].execute_complete(context, event("Approve", by="bob"), **kwargs)
    second = world.stores.ledger.get(Approval, given["approval"])
    assert (second.decision, second.by, second.id == first.id) == ("approved", "bob", False)
    cleared = world.context(**by_hand)
    assert cleared["task"].execute(cleared) == given
    assert len(world.asked) == 2


def test_what_was_promoted_is_not_asked_again(world):
    uri = world.candidate("cc")
    context, kwargs = world.ask(events=[uri])
    given = context["task"].execute_complete(context, event("Approve"), **kwargs)
    tried(world, uri, world.approvals()[0], "promoted")
    by_hand = world.context(candidate=uri, run_type="manual", run_after=datetime.now(UTC))
    assert by_hand["task"].execute(by_hand) == given


def test_nobody_answered_in_time(world):
    context, kwargs = world.ask(events=[world.candidate("cc")])
    with pytest.raises(DownstreamTasksSkipped):
        context["task"].execute_complete(context, event("Reject", by=None), **kwargs)
    (approval,) = world.approvals()
    assert (approval.by, approval.mode) == ("visionloop", "automatic")
    assert approval.reason == "no approver answered within 24 hours"


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_a_cleared_task_takes_the_answer_that_exists(world, decision):
    uri = world.candidate("cc")
    context, kwargs = world.ask(events=[uri])
    chosen = {"approved": "Approve", "rejected": "Reject"}[decision]
    again = world.context(events=[uri])
    for step in (
        lambda: context["task"].execute_complete(context, event(chosen), **kwargs),
        lambda: again["task"].execute(again),
    ):
        if decision == "approved":
            assert step()["candidate"] == uri
        else:
            with pytest.raises(DownstreamTasksSkipped):
                step()
    assert len(world.asked) == 1
    assert len(world.approvals()) == 1


def test_automatic_is_written_down_as_such(ray, tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, approval="automatic")
    uri = world.candidate("cc")
    context = world.context(events=[uri])
    assert context["task"].execute(context)["candidate"] == uri
    (approval,) = world.approvals()
    assert (approval.decision, approval.mode, approval.by) == ("approved", "automatic", "visionloop")
    assert world.asked == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"events": ["old"]}, "new"),
        ({"events": ["old", "new"]}, "new"),
        ({}, "new"),
        ({"candidate": "old"}, "old"),
        ({"candidate": "old", "events": ["new"]}, "old"),
    ],
)
def test_which_candidate(world, facts, expected):
    """An event that came while a run was queued is lost, so the ledger's newest counts, unless the run names one."""
    uris = {"old": world.candidate("old", 3, day=1), "new": world.candidate("new", 4, day=2)}
    given = {**facts, "events": [uris[name] for name in facts.get("events", ())]}
    if "candidate" in facts:
        given["candidate"] = uris[facts["candidate"]]
    _, kwargs = world.ask(**given)
    assert kwargs["shown"]["candidate"] == uris[expected]


def test_without_a_candidate_there_is_nothing_to_ask(world):
    context = world.context()
    with pytest.raises(AirflowFailException, match="has no candidate"):
        context["task"].execute(context)


def test_nobody_approves_the_run_that_he_started(world):
    world.candidate("cc")
    world.ask(starter="ann")
    assert [user["id"] for user in world.asked[0]["assigned_users"]] == ["bob"]


def test_the_only_approver_cannot_start_the_run_alone(ray, tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, approvers=["ann"])
    world.candidate("cc")
    context = world.context(starter="ann")
    with pytest.raises(AirflowFailException, match="ann started this run and is the only approver"):
        context["task"].execute(context)


def test_the_table_marks_what_failed_and_compares_with_the_champion():
    rows = table(
        [
            scenario(outcome="failed"),
            scenario(
                "first-camera",
                bar_kind="not_worse_than_champion",
                margin=0.02,
                champion=Interval(value=0.9, low=0.89, high=0.91, n=1000),
                difference=Interval(value=0.0123, low=-0.001, high=0.02, n=1000),
            ),
        ]
    ).splitlines()
    assert len(rows) == 4
    assert rows[2].endswith("| - | - | at least 80.0 % | **failed** |")
    assert "| +1.2 % [-0.1, +2.0] | at most 2.0 points below the champion | passed |" in rows[3]


def test_the_body_says_whether_there_is_a_champion():
    assert "first release" in body(CANDIDATE, EVALUATION, None)
    champion = CANDIDATE.model_copy(update={"version": 2})
    assert "Champion: version **2**. Both answered" in body(CANDIDATE, EVALUATION, champion)


def variant(name, size, seconds, reason):
    return Variant(
        name=name, sha256=SHA, size_bytes=size, seconds_per_1000_images=seconds, parity=CANDIDATE.parity, changes=[],
        gate="passed", gate_reasons=["fine"], chosen=name == "int8", reason=reason,
    )  # fmt: skip


def test_the_body_shows_the_variants_and_links_their_page():
    assert "variant" not in body(CANDIDATE, EVALUATION, None)
    built = [
        variant("fp32", 629_733, 0.1034, "int8 is cheaper"),
        variant("fp16", 315_777, None, "not measured"),
        variant("int8", 167_558, 0.06, "it costs 58 %"),
    ]
    page = "s3://b/fashion/artifacts/candidate/cc/candidate.html"
    shown = body(CANDIDATE.model_copy(update={"variants": built, "page_uri": page}), EVALUATION, None)
    assert "| fp32 | 0.103 s | 0.63 MB | not served: int8 is cheaper |" in shown
    assert "| fp16 | not measured | 0.32 MB | not served: not measured |" in shown
    assert "| **int8** | 0.060 s | 0.17 MB | **served**: it costs 58 % |" in shown
    assert "[candidate page](/visionloop/pages/fashion__release/candidate/cc/candidate.html)" in shown


def test_the_body_says_what_it_costs_beside_the_champion():
    text = "project: p\ntask: {classes: [a, b], image: {height: 8, width: 8}}\nsuite: {scenarios: [{name: all}]}\n"
    text += "release: {approval: automatic}\nserving: {instances: 2, threads: 2}\nprice: {per_hour: 3.6}\n"
    mine = CANDIDATE.model_copy(update={"variants": [variant("fp32", 1, 9, "x"), variant("int8", 1, 4, "it is cheap")]})
    theirs = CANDIDATE.model_copy(update={"variants": [variant("int8", 1, 5, "x")]})
    shown = body(mine, EVALUATION, theirs, parse_project(text, Path("project.yaml")))
    assert "| **int8** | 4.000 s, 0.00100 USD |" in shown  # a quarter of the machine for 4 s, at 0.001 a second
    assert "1,000 images cost 0.80x the champion's" in shown
    assert "champion's" not in body(mine, EVALUATION, None)
    assert "champion's" not in body(mine, EVALUATION, CANDIDATE)


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("s3://b/p/artifacts/evaluation/e/a b.html", "/visionloop/pages/p__release/evaluation/e/a%20b.html"),
        ("https://elsewhere/page.html", "https://elsewhere/page.html"),
    ],
)
def test_page_link(uri, link):
    assert layout.page("p", uri) == link
    assert layout.link("http://airflow:8080/", "p", uri) == (f"http://airflow:8080{link}" if link != uri else uri)
    assert layout.link(None, "p", uri) == uri


def test_the_form_has_a_reason():
    assert module.REASON.schema["type"] == "string"
