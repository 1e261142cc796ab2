"""What `up` on a running stack tells the servers, and what jobs inherit from Ray."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.settings import Settings
from visionloop.stack.airflow import AIRFLOW
from visionloop.stack.ray import RAY, ray_environment
from visionloop.stack.refresh import refresh
from visionloop.stack.service import Context, Launch, Service, Step

REPO = Path(__file__).resolve().parents[3]
PORTS = ("airflow-api.http", "ray.http", "ray.autoscaler_metrics", "ray.dashboard_metrics")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    settings = Settings(home=tmp_path / "home", projects=tmp_path / "projects")
    return Context(home=settings.home, repo=REPO, settings=settings, ports=dict.fromkeys(PORTS, 8080))


def service(code: int, fresh: bool) -> Service:
    """A service whose refreshing runs a command that ends with this status."""

    def tell(ctx: Context, step: Step) -> bool:
        step(Launch([sys.executable, "-c", f"import sys; print('why', file=sys.stderr); sys.exit({code})"], {}, REPO))
        return fresh

    return replace(RAY, name=f"s{code}{fresh}", refresh=tell)


def test_names_the_services_that_need_a_new_start(ctx: Context) -> None:
    before = datetime.now(UTC)
    since = refresh([RAY, service(0, True), service(0, False)], ctx)
    assert set(since) == {"s0False"}
    assert before <= since["s0False"] <= datetime.now(UTC)


def test_a_command_that_fails_says_why(ctx: Context) -> None:
    with pytest.raises(StackError, match="ended with status 3: why"):
        refresh([service(3, True)], ctx)


def test_a_new_project_gets_its_dag_file_without_a_new_start(ctx: Context) -> None:
    processor = next(service for service in AIRFLOW if service.name == "airflow-dag-processor")
    for name in ("one", "two"):
        path = ctx.settings.projects / name / "project.yaml"
        path.parent.mkdir(parents=True)
        path.write_text("project: [broken" if name == "two" else f"project: {name}")
        assert refresh([processor], ctx) == {}
        assert str(path) in (ctx.home / "airflow" / "dags" / f"{name}.py").read_text()


def test_jobs_print_no_colours_and_their_threads_do_not_spin(ctx: Context) -> None:
    found = ray_environment(ctx)
    assert (found["RAY_COLOR_PREFIX"], found["OMP_WAIT_POLICY"]) == ("0", "PASSIVE")
