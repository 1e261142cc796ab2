"""`visionloop predict`: image files through the endpoint, many at a time."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from visionloop.errors import ConfigError
from visionloop.project import load_project, project_file
from visionloop.settings import Settings, load_settings

if TYPE_CHECKING:
    from visionloop.serving.client import Answer, Client, Predicted

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: visionloop predict fashion photos/ one.png --top 3")(predict)


def predict(
    project: Annotated[str, typer.Argument(help="name of the project, which is the model's name too")],
    images: Annotated[list[Path], typer.Argument(help="image files; a folder: the images in it and below")],
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object a line, with all probabilities")
    ] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="so many labels per image", show_default="1; with --json all")
    ] = None,
    session: Annotated[str | None, typer.Option(help="requests of one session stay in one lane")] = None,
    url: Annotated[
        str | None, typer.Option(help="the endpoint; needs no project file", show_default="VISIONLOOP_ENDPOINT_URL")
    ] = None,
) -> None:
    """Ask the endpoint which label each image has; exit code 1 when a file could not be read.

    Files are read and resized as the training data were, and go many to a request.
    """
    from visionloop.serving.client import image_files, predict_files

    settings = load_settings()
    files = image_files(images)
    client, max_side = _open(project, url, settings)
    errors = Console(stderr=True)
    done: list[tuple[Path, Answer]] = []
    unread = 0
    try:
        with client:
            results = predict_files(client, files, max_side=max_side, session=session)
            for result in _watched(results, len(files), errors):
                if result.answer is None:
                    unread += 1
                    errors.print(Text(f"{result.path}: {result.fault}", style="red"), soft_wrap=True)
                elif as_json:
                    typer.echo(_line(result.path, result.answer, top))
                else:
                    done.append((result.path, result.answer))
    finally:  # what was answered before the endpoint failed is worth showing
        if done:
            _show(done, top or 1)
    if unread:
        errors.print(f"{unread:,} of {len(files):,} files could not be read")
        raise typer.Exit(1)


def _open(project: str, url: str | None, settings: Settings) -> tuple["Client", int]:
    """By the project's file; by what the endpoint says where there is only an address."""
    from visionloop.data.images import MAX_SIDE
    from visionloop.serving.client import Client, connect, open_client

    # The loop's own key is for its own endpoint; another one is sent what was named for it, or none.
    key_file = settings.own_key_file if url == settings.endpoint_url else settings.endpoint_key
    try:
        loaded = load_project(project_file(settings.projects, project))
    except ConfigError:
        if url is None or (settings.projects / project / "project.yaml").exists():
            raise
        return connect(url, project, key_file=key_file), MAX_SIDE
    max_side = loaded.data.contract.max_side
    if url is not None:
        return Client(url, loaded, key_file=key_file), max_side
    return open_client(settings, loaded), max_side


def _watched(results: "Iterator[Predicted]", total: int, errors: Console) -> "Iterator[Predicted]":
    """A bar on a terminal; elsewhere a line now and then for those who ask for the log."""
    from visionloop.data.progress import tracked

    if not errors.is_terminal:
        yield from tracked(results, total=total, what="predict", log=log)
        return
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        yield from bar.track(results, total=total)


def _line(path: Path, answer: "Answer", top: int | None) -> str:
    best = answer.top(top or len(answer.labels))
    return json.dumps(
        {
            "file": str(path),
            "label": answer.label,
            "confidence": round(answer.confidence, 6),
            "lane": answer.lane,
            "version": answer.version,
            "request_id": answer.request_id,
            "probabilities": {label: round(share, 6) for label, share in best},
        },
        ensure_ascii=False,
    )


def _show(done: "list[tuple[Path, Answer]]", top: int) -> None:
    table = Table("file", "label", "confidence", *(["then"] if top > 1 else []), "lane", "version", box=None)
    for path, answer in done:
        rest = ", ".join(f"{label} {share:.1%}" for label, share in answer.top(top)[1:])
        cells = [str(path), answer.label, f"{answer.confidence:.1%}", *([rest] if top > 1 else [])]
        table.add_row(*map(Text, [*cells, answer.lane, str(answer.version)]))
    console = Console()
    console.print(table, width=None if console.is_terminal else 10_000, crop=console.is_terminal)
