"""`visionloop endpoint-key add | list | remove`: who may call an endpoint that asks for API keys."""

import json
from pathlib import Path
from typing import Annotated

import typer

from visionloop.settings import load_settings

app = typer.Typer(help="API keys of the endpoint's clients: add, list, remove.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

AT_UP = "the endpoint takes it in at the next `visionloop up`, without a restart"


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="endpoint-key")


@app.command(epilog="Example: visionloop endpoint-key add belt-3 > belt-3.key")
def add(client: Annotated[str, typer.Argument(help="name of who gets the key")], as_json: AsJson = False) -> None:
    """Make a key for a client and print it, this once; the file VISIONLOOP_ENDPOINT_KEYS keeps it."""
    from visionloop.serving.keys import add_key

    key = add_key(_file(), client)
    typer.echo(json.dumps({"client": client, "key": key}) if as_json else key)
    typer.echo(AT_UP, err=True)


@app.command("list", epilog="Example: visionloop endpoint-key list --json")
def show(as_json: AsJson = False) -> None:
    """The clients that have a key; never the keys."""
    from visionloop.serving.keys import read_keys

    clients = sorted(read_keys(_file()))
    typer.echo(json.dumps(clients) if as_json else "\n".join(clients))


@app.command(epilog="Example: visionloop endpoint-key remove belt-3")
def remove(client: Annotated[str, typer.Argument(help="name of who loses the key")], as_json: AsJson = False) -> None:
    """Take a client's key away."""
    from visionloop.serving.keys import remove_key

    remove_key(_file(), client)
    if as_json:
        typer.echo(json.dumps({"removed": client}))
    typer.echo(AT_UP, err=True)


def _file() -> Path:
    return Path(load_settings().need("endpoint_keys"))
