"""`visionloop rollout`: where a release in progress stands, and what people may ask of it."""

import json
from datetime import datetime
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visionloop.cli.who import As, orderer
from visionloop.project import Project, load_project, project_file
from visionloop.serving.cost import told
from visionloop.serving.memory import needed_mib
from visionloop.settings import load_settings
from visionloop.stages.release import RollbackInputs, Status
from visionloop.stores import Stores

Reason = Annotated[str, typer.Option(help="why; kept in the release's record")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]

app = typer.Typer(
    help="A release in progress: its status, and orders to it; what became of others.",
    no_args_is_help=True,
)


def register(parent: typer.Typer) -> None:
    """Add the group to the application."""
    app.command(epilog="Example: visionloop rollout status fashion --json")(status)
    app.command(epilog="Example: visionloop rollout history fashion --last 5")(history)
    app.command(epilog='Example: visionloop rollout pause fashion --reason "the line is down"')(pause)
    app.command(epilog='Example: visionloop rollout resume fashion --reason "the line is up"')(resume)
    app.command(epilog='Example: visionloop rollout promote fashion --reason "urgent" --yes')(promote)
    app.command(epilog='Example: visionloop rollout abort fashion --reason "wrong week for it" --yes')(abort)
    parent.add_typer(app, name="rollout")


def status(project: str, as_json: AsJson = False) -> None:
    """What serves, what is on its way, and what its evidence says so far."""
    from visionloop.stages import release

    found = release.status(*_open(project))
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        _show(found)


def history(
    project: str,
    last: Annotated[int, typer.Option(min=1, help="so many of the newest")] = 20,
    as_json: AsJson = False,
) -> None:
    """Releases and rollbacks, the newest first: what came of each, and why."""
    from visionloop.stages import release

    found = release.history(*_open(project))[:last]
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=1))
        return
    if not found:
        typer.echo(f"{project} was never released")
        return
    table = Table("version", "at (UTC)", "outcome", "served before", "approved by", "why")
    for one in found:
        before = str(one.previous_version or "-")
        at, outcome = f"{one.at:%Y-%m-%d %H:%M:%S}", one.outcome.replace("_", " ")
        table.add_row(str(one.version), at, outcome, before, escape(one.approved_by), escape(one.reason))
    Console().print(table)


def pause(project: str, reason: Reason, by: As = None, as_json: AsJson = False) -> None:
    """Keep the canary at its present share; a fault still ends it."""
    _order(project, "pause", reason, by, as_json)


def resume(project: str, reason: Reason, by: As = None, as_json: AsJson = False) -> None:
    """Let a paused release go on."""
    _order(project, "resume", reason, by, as_json)


def promote(project: str, reason: Reason, by: As = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Promote the canary now, without waiting for more evidence; a fault still ends it."""
    from visionloop.stages import release

    found = release.status(*_open(project))
    if not yes and found.version is not None:
        unproven = ", ".join(one.name for one in found.findings if one.finding == "open" and one.needed) or "nothing"
        typer.confirm(
            f"version {found.version} has still to be shown to be well in: {unproven}. Promote it?",
            abort=True,
            err=True,
        )
    _order(project, "promote", reason, by, as_json)


def abort(project: str, reason: Reason, by: As = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Call the release off; the version before it never stopped serving."""
    from visionloop.stages import release

    loaded, stores = _open(project)
    inputs = RollbackInputs(by=orderer(by), reason=reason)
    found = release.status(loaded, stores)
    if not yes and found.version is not None:
        stays = f"version {found.serving} goes on serving" if found.serving else "nothing serves then"
        typer.confirm(f"version {found.version} of {project} is called off, {stays}. Do it?", abort=True, err=True)
    done = release.abort(loaded, inputs, stores)
    typer.echo(done.model_dump_json(indent=1) if as_json else f"{project}: version {done.version} is {done.reason}")


def _order(
    project: str, verb: Literal["pause", "resume", "promote"], reason: str, by: str | None, as_json: bool
) -> None:
    from visionloop.stages import release

    loaded, stores = _open(project)
    given = release.order(loaded, verb, orderer(by), reason, stores)
    said = f"{project}: {given.verb} by {given.by} is written down; the release obeys at its next look"
    typer.echo(given.model_dump_json(indent=1) if as_json else said)


def _show(found: Status) -> None:
    serves = f"version {found.serving} serves" if found.serving else "nothing serves yet"
    if found.version is None:
        typer.echo(f"{found.project}: {serves}; no release is in progress")
        if found.last:
            outcome = found.last.outcome.replace("_", " ")
            typer.echo(f"last: version {found.last.version} {outcome} at {_at(found.last.at)}: {found.last.reason}")
        if found.cost and found.cost.per_1000 is not None:
            typer.echo(f"it costs {told(found.cost)}")
        return
    share = f"{found.state.canary_percent} % of the traffic" + (", paused" if found.paused else "")
    typer.echo(f"{found.project}: {serves}; version {found.version} is in its {found.state.phase} with {share}")
    typer.echo(f"last looked after at {_at(found.state.updated_at)}")
    if found.state.shadow:
        from visionloop.serving.replay import describe

        typer.echo(f"shadow: {describe(found.state.shadow)}")
    if found.cost:
        typer.echo(f"it costs {told(found.cost)}")
    table = Table("rate", "canary", "stable", "allowed", "true rate, with confidence", "finding")
    for one in found.findings:
        beside = f"{one.stable[0]} of {one.stable[1]}" if one.stable else "-"
        low, high = one.bounds
        seen = f"{one.canary[0]} of {one.canary[1]}"
        table.add_row(one.name, seen, beside, f"{one.allowed:.1%} more", f"{low:.2%} to {high:.2%}", one.finding)
    Console().print(table)
    if len(found.state.memory) > 1:
        last = found.state.memory[-1]
        typer.echo(f"memory: {needed_mib(found.state.memory):.0f} MiB at most, after {last.requests} requests")
    for order in found.state.orders:
        typer.echo(f"{order.at:%H:%M:%S} UTC: {order.verb} by {order.by}: {order.reason}")


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _open(name: str) -> tuple[Project, Stores]:
    from visionloop.stores import connect

    settings = load_settings()
    return load_project(project_file(settings.projects, name)), connect(settings)
