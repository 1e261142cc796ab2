"""What docs/guide/serving.md shows works as pasted: the shell lines in a shell, the cells as a notebook runs them."""

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionloop.settings import to_environ
from visionloop.stores.routes import open_routes

from . import tiny
from .conftest import make_project, put
from .servers import REPO

GUIDE = (REPO / "docs" / "guide" / "serving.md").read_text()
SIDE = 28
"""As the guide's curl line has it."""
BLACK, WHITE = np.zeros((1, SIDE, SIDE, 1), np.uint8), np.full((1, SIDE, SIDE, 1), 255, np.uint8)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def model(running) -> Path:
    project = make_project(running, "guide", side=SIDE)
    path = put(running, project, "stable", 5, side=SIDE)
    open_routes(running.settings).set(project, stable=100, canary=0)
    return path


@pytest.fixture
def there(running, model, tmp_path, monkeypatch) -> dict[str, str]:
    """A folder with photos, and the two variables that the guide sets."""
    (tmp_path / "photos").mkdir()
    for name, level in (("night.png", 0), ("snow.jpg", 255)):
        Image.new("RGB", (60, 40), (level,) * 3).save(tmp_path / "photos" / name)
    own = {**to_environ(running.settings), "MODEL": "guide", "COLUMNS": "200"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(text: str, environ: dict[str, str]) -> str:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode in (0, 141), ran.stderr  # `yes` ends by a closed pipe, in an argument
    return ran.stdout


def test_the_guide_has_all_of_it():
    assert [len(blocks(language)) for language in ("bash", "python")] == [2, 3]
    assert re.search(r"^    export VISIONLOOP_ENDPOINT_URL=\S+ MODEL=\S+$", GUIDE, re.MULTILINE)


def test_the_commands(there):
    [commands] = [block for block in blocks("bash") if block.startswith("visionloop")]
    shown = shell(commands, there)
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines()[1:]}
    assert rows == {"photos/night.png": "dark", "photos/snow.jpg": "bright"}
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [(a["file"], a["label"], a["lane"], a["version"]) for a in answers] == [
        ("photos/night.png", "dark", "stable", 5),
        ("photos/snow.jpg", "bright", "stable", 5),
    ]


def test_an_address_is_enough_for_the_command(there, running):
    there["VISIONLOOP_PROJECTS"] = str(Path.cwd())
    shown = shell('visionloop predict "$MODEL" photos/ --json --url "$VISIONLOOP_ENDPOINT_URL"', there)
    assert [json.loads(line)["label"] for line in shown.splitlines()] == ["dark", "bright"]


def test_the_curl_lines(there, model):
    [lines] = [block for block in blocks("bash") if block.startswith("curl")]
    said = shell(lines, there)
    head, _, rest = said.replace("\r\n", "\n").partition("\n\n")
    body, labels = rest.splitlines()
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert head.startswith("HTTP/1.1 200")
    assert (headers["x-lane"], headers["x-request-id"]) == ("stable", "order-17")
    answer = json.loads(body)
    assert answer["model_version"] == "5"
    assert np.allclose(answer["outputs"][0]["data"], tiny.offline(model, BLACK)[0], atol=1e-5)
    assert json.loads(labels) == tiny.CLASSES


def test_the_cells_run_as_in_a_notebook(there, model, capsys):
    """One namespace for all, `await` outside of functions."""
    names: dict = {}
    said = []
    for cell in blocks("python"):
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        said.append(capsys.readouterr().out.splitlines())
    first, files, awaited = said
    count, label, confidence, lane, version, request_id = first[0].split()
    assert (count, label, lane, version) == ("100", "dark", "stable", "5")
    assert float(confidence) == pytest.approx(tiny.offline(model, BLACK)[0].max(), abs=1e-5)
    assert request_id.endswith(".1")
    assert first[1].startswith("[('dark', 0.99")
    assert files == ["photos/night.png dark", "photos/snow.jpg bright"]
    assert awaited == [f"order-{number} dark" for number in range(3)]
