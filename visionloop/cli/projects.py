"""`visionloop project check | schema | init` and `visionloop deliver`: what an ML engineer starts with."""

import json
from pathlib import Path
from typing import Annotated

import typer

from visionloop import layout
from visionloop.errors import ConfigError
from visionloop.project import Project, load_project, project_file
from visionloop.settings import load_settings

app = typer.Typer(help="Project files: check, print the schema, begin one from images.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="project")
    parent.command(epilog="Example: visionloop deliver fashion ./monday --dry-run")(deliver)


@app.command(epilog="Example: visionloop project check fashion")
def check(
    project: Annotated[str | None, typer.Argument(help="name or path of a project file; none: all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check project files; every fault with file, line, what was expected and found."""
    results: dict[str, list[str]] = {}
    for path in _paths(project):
        try:
            load_project(path)
            results[str(path)] = []
        except ConfigError as error:
            results[str(path)] = str(error).splitlines()
    if as_json:
        typer.echo(json.dumps(results, indent=1))
    else:
        for path_text, faults in results.items():
            typer.echo("\n".join(faults) if faults else f"{path_text}: fine")
    if any(results.values()):
        raise typer.Exit(1)


@app.command(epilog="Example: visionloop project schema > project.schema.json")
def schema() -> None:
    """The JSON schema of project.yaml, every field with its unit; editors complete and check with it."""
    typer.echo(json.dumps(Project.model_json_schema(), indent=1))


@app.command(epilog="Example: visionloop project init screws --task classification --data ./photos --approver lea")
def init(
    name: str,
    data: Annotated[Path, typer.Option(help="folder of class folders, or of IDX files")],
    task: Annotated[str, typer.Option(help="what the model answers")] = "classification",
    approver: Annotated[list[str] | None, typer.Option(help="Airflow user who may release, repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Make projects/NAME/project.yaml from a folder of images: classes and sizes are read from the data."""
    from visionloop.data.scaffold import scaffold

    path = load_settings().projects / layout.checked(name) / "project.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists: check it with `visionloop project check {name}`, or choose another name")
    text = scaffold(name, task=task, folder=data, approvers=approver or ["release-manager"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; VISIONLOOP_PROJECTS names another folder"
        ) from None
    made = load_project(path)
    if as_json:
        typer.echo(json.dumps({"project": made.name, "file": str(path), "classes": made.task.classes}))
    else:
        typer.echo(f"made {path}; next: read it, then `visionloop up` and `visionloop deliver {name} {data}`")


def deliver(
    project: str,
    folder: Annotated[Path, typer.Argument(help="class folders with images, or IDX files")],
    batch: Annotated[
        str | None, typer.Option(help="name of the batch", show_default="folder's name and digest")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would be delivered")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Deliver a folder as a batch; the data DAG takes it from there."""
    from visionloop.stages.deliver import Inputs, run
    from visionloop.stores import connect

    settings = load_settings()
    loaded = load_project(project_file(settings.projects, project))
    delivery = run(loaded, Inputs(folder=folder, batch=batch, dry_run=dry_run), connect(settings))
    if as_json:
        typer.echo(delivery.model_dump_json())
        return
    verb = "would deliver" if dry_run else "delivered before:" if delivery.already else "delivered"
    typer.echo(f"{verb} batch {delivery.batch}: {delivery.files:,} files, {delivery.size_bytes / 1e6:,.1f} MB")


def _paths(project: str | None) -> list[Path]:
    if project is not None and Path(project).suffix in {".yaml", ".yml"}:
        return [Path(project)]
    projects = load_settings().projects
    if project is not None:
        return [project_file(projects, project)]
    found = sorted(projects.glob("*/project.yaml"))
    if not found:
        raise ConfigError(f"no project file under {projects}: begin one with `visionloop project init`")
    return found
