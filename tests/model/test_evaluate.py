"""Evaluate: the same samples for both models, the champion of the day, a page, and one record however often it runs."""

import json
from pathlib import Path

import pytest

from tests.unit.stages.corners import TEXT, World, a_project, bad, good, weak_onnx
from visionloop.errors import IntegrityError, NotFound, StageError, StoreError
from visionloop.records import Evaluation
from visionloop.stages import evaluate


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def by_name(evaluation: Evaluation) -> dict[tuple[str, str], str]:
    return {(result.name, result.bar_kind): result.outcome for result in evaluation.scenarios}


def test_the_first_challenger_is_measured_alone(world: World) -> None:
    snapshot = world.snapshot()
    uri = world.training_run(snapshot)
    found = world.evaluation(uri)
    assert by_name(found) == {
        ("overall", "at_least"): "passed",
        ("camera-one", "none"): "passed",
        ("noise", "at_least"): "failed",
    }
    assert (found.champion, found.test_samples, found.training_run) == (None, 200, uri)
    assert found.inputs == {"training_run": uri, "snapshot": world.stores.ledger.uri(snapshot)}
    assert set(found.input_digests) == {"training_run", "snapshot"}
    overall, camera, noise = found.scenarios
    assert overall.challenger.value > 0.9 and overall.challenger.n == 200 and camera.challenger.n == 200
    assert noise.challenger.value < overall.challenger.value


def test_an_untrained_model_fails(world: World) -> None:
    found = world.evaluation(world.training_run(world.snapshot(), bad()))
    assert by_name(found)["overall", "at_least"] == "failed"
    assert found.scenarios[0].challenger.value < 0.6


def test_challenger_and_champion_answer_the_same_samples(world: World) -> None:
    world.snapshot("zero", seed=8)
    uri = world.training_run(world.snapshot())
    champion = world.champion(weak_onnx())
    found = world.evaluation(uri)
    assert found.champion == found.inputs["champion"] == world.stores.ledger.uri(champion)
    assert found.test_samples == 400
    overall = next(result for result in found.scenarios if result.bar_kind == "not_worse_than_champion")
    assert overall.champion is not None and overall.difference is not None
    assert overall.challenger.n == overall.champion.n == overall.difference.n == 400
    assert overall.difference.value == pytest.approx(overall.challenger.value - overall.champion.value)
    assert overall.difference.low > 0
    (camera,) = (result for result in found.scenarios if result.name == "camera-one")
    assert camera.challenger.n == 200


def test_the_page_and_the_figures_are_where_people_look(world: World) -> None:
    world.champion(weak_onnx())
    found = world.evaluation(world.training_run(world.snapshot()))
    page = world.stores.objects.get(world.stores.objects.key(found.page_uri)).decode()
    for text in ("overall", "camera-one", "noise", "version 1", "passed", "better than the champion"):
        assert text in page
    run = world.registry.runs["mlflow-corners-t1"]
    assert run.files["evaluation.html"] == page
    assert Evaluation.model_validate(json.loads(run.files["evaluation.json"])) == found
    values = {point.key: point.value for point in run.points}
    assert values["test_overall_accuracy"] == found.scenarios[0].challenger.value


def test_run_again_it_is_the_same_record_whoever_is_champion_now(world: World) -> None:
    uri = world.training_run(world.snapshot())
    first = world.evaluation(uri)
    world.champion(weak_onnx())
    assert world.evaluation(uri) == first
    assert world.stores.ledger.all(Evaluation, "corners") == [first]


def test_another_suite_is_another_evaluation(world: World) -> None:
    uri = world.training_run(world.snapshot())
    first = world.evaluation(uri)
    other = world.evaluation(uri, a_project("at_least: 0.8", "at_least: 0.8, min_samples: 201"))
    assert other.id != first.id and other.config_digest != first.config_digest
    assert by_name(other)["overall", "at_least"] == "too_few"
    same = world.evaluation(uri, a_project("approval: automatic", "approval: automatic, step_requests: 50"))
    assert same == first


@pytest.mark.parametrize("at", ["objects", "registry", "ledger"])
def test_killed_and_run_again(world: World, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Before the page, before the figures are in MLflow, before the record."""
    uri = world.training_run(world.snapshot())
    stores = world.connect()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(getattr(stores, at), {"registry": "log_text"}.get(at, "put"), killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(world.project, evaluate.Inputs(training_run=uri), stores)
    assert world.stores.ledger.all(Evaluation, "corners") == []
    found = world.evaluation(uri)
    assert world.stores.ledger.all(Evaluation, "corners") == [found]
    run = world.registry.runs["mlflow-corners-t1"]
    assert set(run.files) == {"evaluation.html", "evaluation.json"}
    figures = {(point.key, point.value) for point in run.points}
    assert len(figures) == len({key for key, _ in figures})  # the same seed: the same figures


def test_at_most_so_many_test_samples(world: World) -> None:
    text = TEXT.replace("suite:\n", "suite:\n  max_test_samples: 100\n")
    uri = world.training_run(world.snapshot())
    found = world.evaluation(uri, a_project(TEXT, text))
    assert found.test_samples == 100 and found.scenarios[0].challenger.n == 100


def test_a_checkpoint_or_champion_that_is_not_what_its_record_says_is_refused(world: World) -> None:
    snapshot = world.snapshot()
    uri = world.training_run(snapshot)
    key = "corners/checkpoints/t1/epoch-000002/weights.safetensors"
    world.stores.objects.put(key, bad())
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: expected SHA-256"):
        world.evaluation(uri)
    world.stores.objects.put(key, good())
    world.champion(weak_onnx(), model_sha256="0" * 64)
    with pytest.raises(IntegrityError, match=r"model\.onnx has SHA-256 [0-9a-f]+, approved is 000"):
        world.evaluation(uri)


def test_a_champion_that_this_installation_did_not_sign_judges_nobody(world: World) -> None:
    uri = world.training_run(world.snapshot())
    world.champion(weak_onnx(), signature="")
    with pytest.raises(IntegrityError, match="version 1 of corners is not signed"):
        world.evaluation(uri)


def test_a_champion_of_other_classes_cannot_be_compared(world: World) -> None:
    uri = world.training_run(world.snapshot())
    world.champion(weak_onnx(), classes=["top-right", "top-left", "bottom-left", "bottom-right"])
    with pytest.raises(StageError, match=r"cannot be compared.*keep the classes"):
        world.evaluation(uri)


def test_mlflow_away_is_one_clear_error_and_no_record(world: World) -> None:
    uri = world.training_run(world.snapshot())
    world.registry.down = True
    with pytest.raises(StoreError, match="MLflow at memory cannot be reached"):
        world.evaluation(uri)
    assert world.stores.ledger.all(Evaluation, "corners") == []
    world.registry.down = False
    assert world.evaluation(uri).champion is None


def test_a_training_run_that_does_not_exist(world: World) -> None:
    with pytest.raises(NotFound):
        world.evaluation(world.stores.objects.uri("corners/records/training_run/none.json"))
