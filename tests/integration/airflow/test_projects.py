"""Project files that come while the stack runs: a new one gets DAGs and approver, a broken one breaks no other."""

import pytest

from tests.integration.airflow.conftest import PROJECT, SERVICES, Loop
from visionloop import stack
from visionloop.stores.airflow import open_airflow

VERBS = ("data", "train", "release", "monitor")
WRONG = "  drift_sharee: 0.3"


@pytest.fixture(scope="module")
def up_again(loop: Loop) -> Loop:
    """A sound and a broken project are added, then the user says `up`; what is asked afterwards is asked anew."""
    text = (loop.settings.projects / PROJECT / "project.yaml").read_text()
    for name in ("lenses", "broken"):
        path = loop.settings.projects / name / "project.yaml"
        path.parent.mkdir()
        own = text.replace(f"project: {PROJECT}", f"project: {name}").replace("- release-manager", f"- {name}-lead")
        path.write_text(own if name == "lenses" else own.replace("monitoring:", f"monitoring:\n{WRONG}"))
    found = stack.up(loop.settings, only=SERVICES)
    assert found.is_up
    loop.airflow = open_airflow(loop.settings)
    return loop


def test_a_new_project_has_its_dags(up_again: Loop) -> None:
    for verb in VERBS:
        up_again.until(f"lenses__{verb}", lambda verb=verb: up_again.knows(f"lenses__{verb}"), 60)
        assert up_again.knows(f"{PROJECT}__{verb}")


def test_a_new_approver_may_log_in_and_only_he_cost_a_restart(up_again: Loop) -> None:
    assert up_again.airflow.login("lenses-lead")
    assert up_again.airflow.login("release-manager")
    restarts = {service.name: service.reason for service in stack.status(up_again.settings).services}
    assert "lenses-lead" in restarts["airflow-api"]
    before = up_again.started("airflow-api")
    assert stack.up(up_again.settings, only=SERVICES).is_up
    assert up_again.started("airflow-api") == before


def test_a_broken_project_is_its_own_import_error_with_its_line(up_again: Loop) -> None:
    errors = up_again.until("the import error", up_again.airflow.import_errors, 60)
    (trace,) = errors.values()
    path = up_again.settings.projects / "broken" / "project.yaml"
    line = path.read_text().splitlines().index(WRONG) + 1
    assert f"{path}:{line}: found unknown key `monitoring.drift_sharee`" in trace
    assert "did you mean `drift_share`?" in trace
    assert not up_again.knows("broken__train")
    assert up_again.knows("lenses__train")


def test_a_corrected_project_is_read_without_further_ado(up_again: Loop) -> None:
    path = up_again.settings.projects / "broken" / "project.yaml"
    path.write_text(path.read_text().replace(WRONG + "\n", ""))
    up_again.until("its DAGs", lambda: up_again.knows("broken__train"), 60)
    assert up_again.until("no import error is left", lambda: not up_again.airflow.import_errors(), 60)
