"""Tasks that only look and decide, in Airflow's worker: which batch, whether to train, is there traffic enough."""

import logging
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

log = logging.getLogger(__name__)


@task(task_id="find")
def find_batch(project: str, params: dict[str, Any] | None = None) -> str:
    """The batch that the run's parameter names, else the oldest one that waits; skipped when there is none."""
    from visionloop.stages.ingest import waiting
    from visionloop_airflow.reaper import reap

    reap(project)
    named = (params or {}).get("batch")
    if named:
        return str(named)
    found = waiting(*_open(project))
    if not found:
        raise AirflowSkipException("no complete batch waits")
    log.info("%d batches wait, the oldest is %s", len(found), found[0])
    return found[0]


@task(task_id="plan")
def plan_training(project: str, params: dict[str, Any] | None = None) -> dict[str, str | None]:
    """The inputs of the training: the run's parameters, else what the plan decides; skipped when it says to wait."""
    from visionloop.stages.plan import Inputs, run

    given = params or {}
    if given.get("snapshot"):
        return {"snapshot": given["snapshot"], "retrain_request": None}
    loaded, stores = _open(project)
    plan = run(loaded, Inputs(), stores)
    if not plan.go:
        raise AirflowSkipException(plan.reason)
    log.info("train: %s", plan.reason)
    return {"snapshot": plan.snapshot, "retrain_request": plan.retrain_request}


@task(task_id="ready")
def ready_captures(project: str) -> dict[str, list[str]]:
    """The captures of the next window; skipped when they are too few."""
    from visionloop.stages.monitor import ready
    from visionloop_airflow.reaper import reap

    reap(project)
    captures = ready(*_open(project))
    if not captures:
        raise AirflowSkipException("not enough captured traffic for a window yet")
    return {"captures": captures}


def _open(name: str) -> tuple[Any, Any]:
    from visionloop.project import load_project, project_file
    from visionloop.settings import load_settings
    from visionloop.stores import connect

    settings = load_settings()
    return load_project(project_file(settings.projects, name)), connect(settings)
