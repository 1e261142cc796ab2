"""The real registry: found again by tag whoever was killed, many at once, and away: one clear error, nothing half."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.training.conftest import Cluster
from visionloop.errors import NotFound, StoreError
from visionloop.project import Project
from visionloop.records import Candidate, Evaluation, TrainingRun
from visionloop.settings import Settings
from visionloop.stages import evaluate, gate, package, train
from visionloop.stores import connect
from visionloop.stores.registry import RECORD, Metric, RegisteredVersion, Registry

MOST_S = 60.0
"""A server that is away must be told within this time (the client tries for 15 s)."""


@pytest.fixture
def registry(cluster: Cluster) -> Registry:
    return connect(cluster.settings).registry


def register(registry: Registry, project: str, candidate: str, run: str) -> RegisteredVersion:
    source = "s3://bucket/some/folder"
    return registry.register(project, candidate, source=source, run_id=run, description="d", tags={"a": "b"})


def test_a_run_is_found_again_by_its_record(registry: Registry) -> None:
    first = registry.run("runs", "r1", name="one", tags={"k": "v"})
    registry.finish(first, "FAILED")
    assert registry.run("runs", "r1", name="one", tags={"k": "v"}) == first
    assert registry._client.get_run(first).info.status == "RUNNING"
    assert registry.run("runs", "r2", name="two") != first


def test_points_are_not_doubled(registry: Registry) -> None:
    run = registry.run("points", "r1", name="one")
    points = [Metric("loss", 1.0 / step, step, 1000 + step) for step in range(1, 4)]
    for _ in range(2):
        registry.log_metrics(run, points)
        registry.log_params(run, {"epochs": 3})
    history = registry._client.get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    registry.log_text(run, "page.html", "<p>")
    assert [entry.path for entry in registry._client.list_artifacts(run)] == ["page.html"]


def test_many_at_once_get_one_run(cluster: Cluster, registry: Registry) -> None:
    def one(_: int) -> str:
        return connect(cluster.settings).registry.run("crowd", "r1", name="one")

    registry.run("crowd", "other", name="makes the experiment")
    with ThreadPoolExecutor(6) as pool:
        (found,) = set(pool.map(one, range(6)))
    assert registry.run("crowd", "r1", name="one") == found
    assert registry._runs(registry._experiment("crowd"), "r1") == [found]


def test_a_double_with_an_earlier_start_changes_nothing(registry: Registry) -> None:
    """Its start is what the clock of its creator said; the run that was settled on is already being written to."""
    settled = registry.run("clocks", "r1", name="one")
    registry._client.create_run(registry._experiment("clocks"), start_time=1, tags={RECORD: "r1"})
    assert registry.run("clocks", "r1", name="one") == settled
    assert registry._runs(registry._experiment("clocks"), "r1") == [settled]


def test_a_run_that_somebody_deleted_is_made_anew(registry: Registry) -> None:
    first = registry.run("gone", "r1", name="one")
    registry._client.delete_run(first)
    second = registry.run("gone", "r1", name="one")
    assert second != first and registry.run("gone", "r1", name="one") == second


def test_many_at_once_register_one_version(cluster: Cluster, registry: Registry) -> None:
    """Each finds the others' doubles, and all delete them."""
    run = registry.run("models", "r1", name="one")

    def one(_: int) -> RegisteredVersion:
        return register(connect(cluster.settings).registry, "models", "uri-of-a-candidate", run)

    with ThreadPoolExecutor(6) as pool:
        found = {version.version for version in pool.map(one, range(6))}
    (kept,) = registry.versions("models")
    assert kept.candidate == "uri-of-a-candidate" and kept.tags["a"] == "b"
    assert found == {kept.version}
    assert register(registry, "models", "uri-of-a-candidate", run) == kept
    assert register(registry, "models", "another", run).version > kept.version


def test_many_at_once_set_an_alias_and_a_tag_that_nobody_has_set(cluster: Cluster, registry: Registry) -> None:
    run = registry.run("firsts", "r1", name="one")
    versions = {name: register(registry, name, f"of-{name}", run).version for name in ("firsts", "second", "third")}
    others = [connect(cluster.settings).registry for _ in range(6)]
    with ThreadPoolExecutor(len(others)) as pool:
        for name, version in versions.items():
            list(pool.map(lambda other, name=name, version=version: other.set_challenger(name, version), others))
            list(pool.map(lambda other, name=name, version=version: other.tag(name, version, {"k": "v"}), others))
            challenger = registry.challenger(name)
            assert challenger is not None and (challenger.version, challenger.tags["k"]) == (version, "v")


def test_aliases_move(registry: Registry) -> None:
    assert registry.champion("nobody") is None and registry.challenger("nobody") is None
    run = registry.run("aliases", "r1", name="one")
    first, second = (register(registry, "aliases", name, run) for name in ("c1", "c2"))
    registry.set_champion("aliases", first.version)
    registry.set_challenger("aliases", second.version)
    registry.set_champion("aliases", second.version)
    registry.tag("aliases", second.version, {"approved": "yes"})
    champion = registry.champion("aliases")
    assert champion is not None and champion == registry.challenger("aliases")
    assert (champion.version, champion.candidate, champion.tags["approved"]) == (second.version, "c2", "yes")
    with pytest.raises(NotFound):
        registry.version("aliases", 99)


def test_another_server_s_error_is_told_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    stranger = Settings(home=tmp_path, store=tmp_path.as_uri(), mlflow_url=cluster.settings.need("s3_endpoint"))
    with pytest.raises(StoreError, match="MLflow at http://127") as caught:
        connect(stranger).registry.champion("p")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Project:
    return cluster.project("outage", epochs=1)


def test_mlflow_away_is_one_clear_error_and_the_next_try_succeeds(cluster: Cluster, project: Project) -> None:
    stores = cluster.stores
    snapshot = stores.ledger.uri(cluster.snapshot(project, 0, 1_500))
    trained = train.run(project, train.Inputs(snapshot=snapshot), cluster.connect())
    evaluation = evaluate.run(project, evaluate.Inputs(training_run=stores.ledger.uri(trained)), cluster.connect())
    decision = gate.run(project, gate.Inputs(evaluation=stores.ledger.uri(evaluation)), cluster.connect())
    packaging = package.Inputs(gate_decision=stores.ledger.uri(decision))

    with cluster.without("mlflow"):
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            package.run(project, packaging, cluster.connect())
        assert time.monotonic() - began < MOST_S
        address = re.escape(cluster.settings.need("mlflow_url"))
        assert re.fullmatch(f"MLflow at {address} cannot be reached: .*", str(caught.value)), caught.value

        job = cluster.submit(project, "train", snapshot=snapshot, seed=99)
        log = cluster.ended(job, "FAILED")
        assert re.search(f"ERROR visionloop.job: StoreError: MLflow at {address} cannot be reached", log)
        assert "Traceback" not in log
        assert stores.ledger.all(Candidate, project.name) == []
        assert stores.ledger.all(TrainingRun, project.name) == [trained]
        assert cluster.checkpointed(project, 1) and len(_checkpointed_runs(cluster, project)) == 1

    assert stores.registry.versions(project.name) == [] and stores.registry.challenger(project.name) is None
    assert len(cluster.runs(project)) == 1
    candidate = package.run(project, packaging, cluster.connect())
    (version,) = stores.registry.versions(project.name)
    assert (version.version, version.candidate) == (candidate.version, stores.ledger.uri(candidate))
    again = cluster.submit(project, "train", snapshot=snapshot, seed=99)
    cluster.ended(again)
    assert len(cluster.runs(project)) == len(stores.ledger.all(TrainingRun, project.name)) == 2
    assert len(stores.ledger.all(Evaluation, project.name)) == 1


def _checkpointed_runs(cluster: Cluster, project: Project) -> set[str]:
    return {item.key.split("/")[2] for item in cluster.stores.objects.scan(f"{project.name}/checkpoints/")}
