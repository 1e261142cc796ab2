"""Who gives an order: the name that is kept with it."""

import getpass
import os
from typing import Annotated

import typer

As = Annotated[
    str | None, typer.Option("--as", help="who orders it; kept in the record", show_default="your user's name")
]


def orderer(named: str | None) -> str:
    """`named`, else the user's name, else `uid 54321`: a container's user may have no name."""
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError: since Python 3.13
        return f"uid {os.getuid()}"
