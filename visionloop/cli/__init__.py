"""`visionloop`: the command line. One file per group of commands; each parses, calls the library, and prints."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from visionloop import __version__
from visionloop.cli import bundle, demo, keys, metrics, predict, projects, release, rollout, serving, stack
from visionloop.errors import VisionLoopError

app = typer.Typer(
    name="visionloop",
    help="Keeps computer-vision models right after they ship: notices, retrains, proves, releases.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stack.register(app)
projects.register(app)
release.register(app)
rollout.register(app)
bundle.register(app)
predict.register(app)
metrics.register(app)
serving.register(app)
keys.register(app)
demo.register(app)


@app.callback(invoke_without_command=True)
def options(
    home: Annotated[
        Path | None,
        typer.Option(help="folder of everything that a run writes", show_default="VISIONLOOP_HOME, else .visionloop"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log what is done")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
) -> None:
    """Options of every command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if home is not None:
        os.environ["VISIONLOOP_HOME"] = str(home)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Entry point: a fault that the user can mend is one message on stderr and exit code 1, never a traceback."""
    try:
        app(prog_name="visionloop")
    except VisionLoopError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
