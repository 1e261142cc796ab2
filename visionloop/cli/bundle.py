"""`visionloop bundle`: an approved model as one file for machines that run no server."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from visionloop.atomic import whole_file
from visionloop.errors import ConfigError
from visionloop.project import load_project, project_file
from visionloop.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: visionloop bundle fashion --out fashion.zip --version 2")(bundle)


def bundle(
    project: str,
    out: Annotated[Path, typer.Option(help="file to write; an older one is replaced")],
    version: Annotated[int | None, typer.Option(help="an approved version", show_default="the champion")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write a model with labels, digests, known answers and a runner that needs only onnxruntime and numpy."""
    from visionloop.packaging.bundle import folder
    from visionloop.stages.bundle import Inputs, run
    from visionloop.stores import connect

    settings = load_settings()
    loaded = load_project(project_file(settings.projects, project))
    made = run(loaded, Inputs(version=version), connect(settings))
    candidate, data = made.candidate, made.data
    _write(out, data)
    told = {
        "file": str(out),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "project": candidate.project,
        "version": candidate.version,
        "variant": candidate.variant,
        "release": made.standing.outcome,
        "model_sha256": candidate.model_sha256,
    }
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{out}: {project} version {candidate.version} ({candidate.variant}), {len(data) / 1e6:,.2f} MB")
    typer.echo(f"SHA-256 {told['sha256']}")
    typer.echo(f"there: python -m zipfile -e {out.name} . && python {folder(candidate)}/run.py --check")


def _write(out: Path, data: bytes) -> None:
    try:
        with whole_file(out) as part:
            part.write_bytes(data)
            part.chmod(0o644)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; name another file with --out") from None
