"""Every command explains itself with an example that would run."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from visionloop import __version__
from visionloop.cli import app

from .conftest import Run

ROOT = typer.main.get_command(app)


def commands(at: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands that do something, by their words."""
    for name, command in sorted(at.commands.items()):
        words = (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words, command


ALL = dict(commands())


def test_the_commands() -> None:
    assert {" ".join(words) for words in ALL} == {
        *("up", "down", "status", "logs", "doctor", "demo"),
        *("project check", "project schema", "project init", "deliver"),
        *("approve", "reject", "rollback", "bundle"),
        *("rollout status", "rollout history", "rollout pause", "rollout resume", "rollout promote", "rollout abort"),
        *("predict", "metrics", "endpoint-key add", "endpoint-key list", "endpoint-key remove"),
        "serving tune",
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_says_what_it_does_and_shows_an_example(run: Run, words: tuple[str, ...]) -> None:
    shown = run(f"{' '.join(words)} --help")
    assert shown.code == 0
    assert f"Example: visionloop {' '.join(words)}" in " ".join(shown.out.split())
    assert len((ALL[words].help or "").split()) > 3
    for option in ALL[words].params:
        if option.name != "help" and option.param_type_name == "option" and option.name not in {"lines", "follow"}:
            assert option.help, option.name


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_help_swallows_no_word(run: Run, words: tuple[str, ...]) -> None:
    """Rich takes `[the champion]` in a text for markup; a default that is told in words is `show_default`."""
    command = ALL[words] if words else ROOT
    shown = " ".join(run(" ".join([*words, "--help"])).out.replace("│", " ").split())
    told = [command.help, command.epilog, *(option.help for option in command.params)]
    told += [f"[default: ({option.show_default})]" for option in command.params if isinstance(option.show_default, str)]
    for text in filter(None, told):
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_example_is_a_command_that_parses(words: tuple[str, ...]) -> None:
    example = ALL[words].epilog.removeprefix("Example: ").split(" > ")[0]
    given = shlex.split(example)
    assert tuple(given[: len(words) + 1]) == ("visionloop", *words)
    ALL[words].make_context(words[-1], given[len(words) + 1 :])


@pytest.mark.parametrize("words", ["", "project"])
def test_without_a_command_there_is_help(run: Run, words: str) -> None:
    shown = run(words)
    assert f"Usage: visionloop {words}".strip() in " ".join((shown.out + shown.err).split())
    assert "check" in shown.out + shown.err


def test_the_version(run: Run) -> None:
    assert run("--version").out.strip() == __version__


@pytest.mark.parametrize("command", ["sttaus", "project chek", "status --jsn", "logs", "rollback p"])
def test_what_is_no_command_is_said(run: Run, command: str) -> None:
    shown = run(command)
    assert shown.code == 2
    assert "Error" in shown.err
