"""`visionloop demo`: the whole loop on this machine, in a home of its own that is made anew each time."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from visionloop import stack
from visionloop.cli.stack import said
from visionloop.errors import StackError
from visionloop.project import load_project, project_file
from visionloop.settings import PREFIX, Settings, load_settings

PROJECT = "fashion"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: visionloop demo --keep")(demo)


def demo(
    keep: Annotated[bool, typer.Option(help="leave the servers up for looking")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON at the end")] = False,
) -> None:
    """Train, release, degrade, notice, retrain, release: the loop turns once, on real servers and real images.

    Writes HOME/demo/report.json; everything else of it lies beside, and goes when the demo is run again.
    """
    from visionloop.demo import report as reports
    from visionloop.demo.story import Story

    console = Console(stderr=as_json)
    began = time.monotonic()
    settings = _fresh_home(load_settings())
    project = load_project(project_file(settings.projects, PROJECT))
    try:
        up_began = time.monotonic()
        found = stack.up(settings, on_event=said)
        settings = load_settings()
        story = Story(project, settings, console)
        story.stages.append(reports.Timed(name="servers up", seconds=round(time.monotonic() - up_began, 1)))
        report = story.tell({service.name: service.version or "" for service in found.services}, began)
        reports.write(report, settings.home / "report.json")
    finally:
        if not keep:
            stack.down(settings)
    typer.echo(report.model_dump_json(indent=1)) if as_json else reports.show(report, console)
    home = _short(settings.home)
    console.print(f"Log in to Airflow as admin; the password is in {home}/stack/secrets/airflow-users.json")
    console.print(f"The whole report: {home}/report.json")
    console.print(
        f"The servers stay up; stop them with: visionloop --home {home} down"
        if keep
        else f"The servers are stopped; start them with: visionloop --home {home} up"
    )
    console.print(f"To look around with the CLI: export VISIONLOOP_HOME={home}")


def _fresh_home(settings: Settings) -> Settings:
    """The demo's own folder below home, emptied: your own projects' data lie elsewhere and are not touched."""
    home = settings.home / "demo"
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # servers that somebody else uses are not for a demo
    os.environ |= {f"{PREFIX}HOME": str(home), f"{PREFIX}PROJECTS": str(settings.projects)}
    stack.down(load_settings())
    try:
        if home.exists():
            shutil.rmtree(home)
        home.mkdir(parents=True)
    except OSError as error:
        raise StackError(f"the last demo in {home} cannot be removed: {error}") from None
    return load_settings()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
