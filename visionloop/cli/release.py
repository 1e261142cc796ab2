"""`visionloop approve | reject | rollback`: who decides on a release, from the command line."""

import json
from typing import Annotated, Literal

import typer

from visionloop.cli.who import As, orderer
from visionloop.errors import ConfigError
from visionloop.project import Project, load_project, project_file
from visionloop.records import Release
from visionloop.settings import Settings, load_settings

User = Annotated[str | None, typer.Option("--as", help="Airflow user", show_default="the project's first approver")]
Reason = Annotated[str, typer.Option(help="why; kept in the record")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog='Example: visionloop approve fashion --reason "better in the dark"')(approve)
    app.command(epilog='Example: visionloop reject fashion --reason "worse on shirts"')(reject)
    app.command(epilog='Example: visionloop rollback fashion --to 3 --reason "complaints" --dry-run')(rollback)


def approve(project: str, reason: Reason, user: User = None, as_json: AsJson = False) -> None:
    """Approve the candidate that waits, as one of the project's approvers."""
    _answer(project, "Approve", reason, user, as_json)


def reject(project: str, reason: Reason, user: User = None, as_json: AsJson = False) -> None:
    """Reject the candidate that waits; the champion stays."""
    _answer(project, "Reject", reason, user, as_json)


def rollback(
    project: str,
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option(help="version", show_default="the one before; a release on its way is called off"),
    ] = None,
    by: As = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would be done")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve an earlier released version again, or call off the release that is on its way."""
    from visionloop.stages import release
    from visionloop.stores import connect

    loaded, settings = _load(project)
    inputs = release.RollbackInputs(to_version=to, by=orderer(by), reason=reason)
    stores = connect(settings)
    plan = release.foresee(loaded, inputs, stores)
    if dry_run:
        typer.echo(json.dumps({"project": project, "would": plan}) if as_json else f"would do: {project}: {plan}")
        return
    if not yes:
        typer.confirm(f"{project}: {plan}. Do it?", abort=True, err=True)
    done = release.rollback(loaded, inputs, stores)
    typer.echo(done.model_dump_json(indent=1) if as_json else _told(done))


def _told(done: Release) -> str:
    if done.outcome == "promoted":
        return f"{done.project} serves version {done.version}: {done.reason}"
    stays = f"version {done.previous_version} goes on serving" if done.previous_version else "nothing serves"
    return f"{done.project}: version {done.version} is {done.reason}; {stays}"


def _answer(project: str, choice: Literal["Approve", "Reject"], reason: str, user: str | None, as_json: bool) -> None:
    from visionloop.stores.airflow import open_airflow

    loaded, settings = _load(project)
    if not loaded.release.approvers:
        raise ConfigError(f"{project} names no approvers: with `approval: automatic` nothing waits for an answer")
    by = user or loaded.release.approvers[0]
    subject = open_airflow(settings).answer(loaded.name, user=by, decision=choice, reason=reason)
    decision = "approved" if choice == "Approve" else "rejected"
    told = {"project": loaded.name, "subject": subject, "decision": decision, "by": by, "reason": reason}
    typer.echo(json.dumps(told) if as_json else f"{decision} {subject}")


def _load(project: str) -> tuple[Project, Settings]:
    settings = load_settings()
    return load_project(project_file(settings.projects, project)), settings
