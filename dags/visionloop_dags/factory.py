"""A project file becomes four DAGs, linked by assets: data -> train -> release -> monitor -> train."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    DeltaTriggerTimetable,
    Param,
    TriggerRule,
    chain,
    get_parsing_context,
)

from visionloop.errors import ConfigError
from visionloop.project import Project, load_project, period_seconds
from visionloop_airflow.approval import REASON, ReleaseApproval
from visionloop_airflow.stage import LightStageOperator, StageOperator
from visionloop_dags.light_tasks import find_batch, plan_training, ready_captures

START = datetime(2025, 1, 1, tzinfo=UTC)
"""Before any run: with `catchup` off the first run is the next one due."""
JOB_CPUS = 1.0
WITHOUT_TIMETABLE = ("@once", "@continuous")
UNFINISHED = None
"""The outcome of a rollout that goes on."""


def project_dags(path: str | Path) -> dict[str, DAG]:
    """DAG id -> DAG of one project; a running task builds its own DAG only. Raises ConfigError with file and line."""
    project = load_project(Path(path))
    if project.name != Path(path).parent.name:
        raise ConfigError(f"{path}:1: project: expected {Path(path).parent.name}, its folder, found {project.name}")
    builders = {f"{project.name}__{verb}": build for verb, build in BUILDERS.items()}
    wanted = get_parsing_context().dag_id
    return {dag_id: build(project) for dag_id, build in builders.items() if wanted not in builders or wanted == dag_id}


def asset(project: Project, name: str) -> Asset:
    """`visionloop://<project>/<name>`."""
    return Asset(f"visionloop://{project.name}/{name}", group="visionloop")


def data_dag(project: Project) -> DAG:
    """Batch -> snapshot.

    Takes the oldest complete batch under the project's incoming prefix, or the one that the parameter `batch` names.
    A batch that breaks the contract is refused: the run is green, no snapshot is made, the reasons are in `validate`.
    """
    params = {"batch": _optional("Batch to take; empty: the oldest that waits")}
    with _dag(project, "data", data_dag, schedule=_schedule(project.schedule.data), params=params) as dag:
        batch = find_batch(project.name)
        ingest = _job(project, "ingest", {"batch": batch})
        validate = _job(project, "validate", {"ingest": ingest.output}, goes_on_with=["accepted"])
        _job(project, "snapshot", {"validation": validate.output}, outlets=[asset(project, "snapshot")])
    return dag


def train_dag(project: Project) -> DAG:
    """Snapshot -> candidate.

    Starts on a new snapshot or on a retrain request; `plan` decides from the latest state whether there is something to
    train. A challenger that the gate rejects ends here, green, with the reasons in `gate`; the champion stays.
    """
    params = {"snapshot": _optional("URI of the snapshot to train on; empty: the plan decides")}
    starts = asset(project, "snapshot") | asset(project, "retrain")
    with _dag(project, "train", train_dag, schedule=starts, params=params) as dag:
        plan = plan_training(project.name)
        train = _job(project, "train", plan, module="ray_jobs.train", num_cpus=0.0)
        evaluate = _job(project, "evaluate", {"training_run": train.output})
        gate = _light(project, "gate", "gate:run", {"evaluation": evaluate.output}, goes_on_with=["passed"])
        _job(project, "package", {"gate_decision": gate.output}, outlets=[asset(project, "candidate")])
    return dag


def release_dag(project: Project) -> DAG:
    """Candidate -> champion.

    An approver named in the project file decides on the figures; then the candidate is checked in the canary lane,
    answers mirrored and captured traffic without a client seeing it, gets its share of the traffic in steps, and takes
    over. A failed step takes the traffic back: the old version never stopped serving. Where a task itself fails,
    nobody looks after the canary any more, and `call_off` takes it away. A run that is started by hand asks again about
    a candidate that was rejected, called off or rolled back.
    """
    release, candidate = project.release, asset(project, "candidate")
    params = {"candidate": _optional("URI of the candidate; empty: the newest")}
    with _dag(project, "release", release_dag, schedule=candidate, params=params) as dag:
        approve = ReleaseApproval(
            task_id="approve",
            project=project.name,
            approvers=release.approvers,
            automatic=release.approval == "automatic",
            timeout_hours=release.approval_timeout_hours,
            candidates=candidate,
            params={"reason": REASON},
        )
        given = approve.output
        tasks = [
            _job(project, "preflight", given, goes_on_with=[UNFINISHED, "promoted"]),
            _job(project, "shadow", given, goes_on_with=[UNFINISHED, "promoted"]),
            _job(project, "canary", given, goes_on_with=[UNFINISHED, "promoted"]),
            _job(project, "promote", given, goes_on_with=["promoted"], outlets=[asset(project, "champion")]),
        ]
        chain(approve, *tasks, EmptyOperator(task_id="released"))
        tasks >> _job(project, "call_off", given, trigger_rule=TriggerRule.ONE_FAILED)
    return dag


def monitor_dag(project: Project) -> DAG:
    """Traffic -> nothing, or a retrain request.

    Builds the next window from the captured traffic, compares it with the reference, and decides. A window that asks
    for nothing ends with a skipped `decide`. It looks on its schedule, and when a new champion serves.
    """
    looks = _schedule_or(project.schedule.monitor, asset(project, "champion"))
    with _dag(project, "monitor", monitor_dag, schedule=looks) as dag:
        ready = ready_captures(project.name)
        window = _job(project, "window", ready)
        drift = _job(project, "drift", {"window": window.output})
        _light(
            project,
            "decide",
            "trigger:run",
            {"drift_report": drift.output},
            goes_on_with=["retrain"],
            outlets=[asset(project, "retrain")],
        )
    return dag


BUILDERS: dict[str, Callable[[Project], DAG]] = {
    "data": data_dag,
    "train": train_dag,
    "release": release_dag,
    "monitor": monitor_dag,
}


def _dag(project: Project, verb: str, build: Callable[[Project], DAG], **arguments: Any) -> DAG:
    about = "\n".join(line.strip() for line in (build.__doc__ or "").splitlines())
    return DAG(
        dag_id=f"{project.name}__{verb}",
        description=about.splitlines()[0],
        doc_md=f"# {project.name}: {about}\n\n{project.description}\n",
        start_date=START,
        catchup=False,
        max_active_runs=1,
        tags=["visionloop", project.name, verb],
        default_args={
            "retries": project.schedule.retries,
            "retry_delay": timedelta(seconds=project.schedule.retry_delay_seconds),
            "pool": project.schedule.pool,
        },
        **arguments,
    )


def _job(project: Project, stage: str, inputs: Any, *, num_cpus: float = JOB_CPUS, **arguments: Any) -> StageOperator:
    return StageOperator(
        task_id=stage, project=project.name, stage=stage, inputs=inputs, num_cpus=num_cpus, **arguments
    )


def _light(project: Project, task_id: str, stage: str, inputs: Any, **arguments: Any) -> LightStageOperator:
    target = f"visionloop.stages.{stage}"
    return LightStageOperator(task_id=task_id, project=project.name, target=target, inputs=inputs, **arguments)


def _schedule(text: str | None) -> timedelta | str | None:
    """A period as a timedelta; cron expressions, presets and None as they are."""
    seconds = period_seconds(text) if text else None
    return timedelta(seconds=seconds) if seconds else text


def _schedule_or(text: str | None, event: Asset) -> AssetOrTimeSchedule | str | None:
    """A schedule that an event comes before; None stays by hand only, and Airflow has no timetable for some presets."""
    if text is None or text in WITHOUT_TIMETABLE:
        return text
    seconds = period_seconds(text)
    times = DeltaTriggerTimetable(timedelta(seconds=seconds)) if seconds else CronTriggerTimetable(text, timezone="UTC")
    return AssetOrTimeSchedule(timetable=times, assets=event)


def _optional(description: str) -> Param:
    return Param(None, type=["null", "string"], description=description)
