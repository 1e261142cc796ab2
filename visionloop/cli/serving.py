"""`visionloop serving tune`: how a model is served best on this machine, measured, and written to its project file."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from visionloop import layout
from visionloop.atomic import write_whole
from visionloop.errors import StageError
from visionloop.project import load_project, parse_project, project_file
from visionloop.records import TunedPoint, Tuning
from visionloop.settings import load_settings

app = typer.Typer(help="How models are served.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="serving")


@app.command(epilog="Example: visionloop serving tune fashion --p99-ms 30 --images 16 --dry-run")
def tune(
    project: str,
    p99_ms: Annotated[float, typer.Option(min=0.1, help="99 of 100 requests are to be answered within this")] = 50.0,
    images: Annotated[int, typer.Option(min=1, help="in a request")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="requests under way at once")] = 64,
    seconds: Annotated[float, typer.Option(min=0.5, help="of each measurement")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each setting, of which the medians count")] = 3,
    cores: Annotated[int | None, typer.Option(min=1, help="for a lane", show_default="all")] = None,
    version: Annotated[int | None, typer.Option(help="a packaged version", show_default="the champion")] = None,
    dry_run: Annotated[bool, typer.Option(help="measure and record, leave the project file as it is")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Try instances, threads and batching delays in the empty canary lane; write the best to the project file.

    It takes the machine's cores for a while: what the stable lane answers meanwhile is slower.
    """
    from visionloop.stages.tune import WARM_SHARE, Inputs, plan, run
    from visionloop.stores import connect

    loaded_settings = load_settings()
    path = project_file(loaded_settings.projects, project)
    loaded = load_project(path)
    inputs = Inputs(
        version=version,
        target_p99_ms=p99_ms,
        concurrency=concurrency,
        images_per_request=images,
        seconds=seconds,
        rounds=rounds,
        cores=cores,
    )
    tries = len(plan(inputs)) * rounds
    columns = (SpinnerColumn(), TextColumn("{task.completed} of {task.total} measurements"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as progress:
        about = tries * seconds * (1 + WARM_SHARE)
        progress.console.print(f"{tries} measurements, {about / 60:.1f} minutes and the loading", soft_wrap=True)
        task = progress.add_task("", total=tries)
        found = run(loaded, inputs, connect(loaded_settings), report=lambda point: progress.advance(task))
    written = found.chosen is not None and not dry_run and _write(path, found.chosen)
    if as_json:
        typer.echo(json.dumps({**found.model_dump(mode="json"), "written": written}))
    else:
        page = layout.link(loaded_settings.airflow_url, loaded.name, found.page_uri)
        _show(found, path, page, written=written, dry_run=dry_run)
    if found.chosen is None:
        raise StageError(f"no setting answers 99 of 100 requests within {p99_ms:g} ms: {path} stays as it is")


def _write(path: Path, chosen: TunedPoint) -> bool:
    """False where the project file says so already."""
    from visionloop.project_edit import with_values

    before = path.read_text()
    values = {name: getattr(chosen, name) for name in ("instances", "threads", "queue_delay_us")}
    serving = load_project(path).serving
    if all(getattr(serving, name) == value for name, value in values.items()):
        return False
    after = with_values(before, "serving", values)
    parse_project(after, path)
    write_whole(path, after, mode=path.stat().st_mode & 0o777)
    return True


def _show(found: Tuning, path: Path, page: str, *, written: bool, dry_run: bool) -> None:
    table = Table("instances", "threads", "delay µs", "images/s", "p50 ms", "p99 ms", "failures", "")
    for point in found.points:
        note = "chosen" if point == found.chosen else "late" if point.p99_ms > found.target_p99_ms else ""
        figures = (f"{point.images_per_second:,.0f}", f"{point.p50_ms:.1f}", f"{point.p99_ms:.1f}")
        numbers = (str(point.instances), str(point.threads), str(point.queue_delay_us))
        table.add_row(*numbers, *figures, str(point.failures), note)
    Console().print(table)
    typer.echo(f"the curve: {page}")
    if written:
        typer.echo(f"written to {path}; the next candidate that is packaged is served so")
    elif found.chosen is not None:
        reason = "a dry run" if dry_run else "it says so already"
        typer.echo(f"{path} was left as it is: {reason}")
