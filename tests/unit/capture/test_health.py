"""What supervisor and Prometheus ask for, and which images are kept by which project."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from visionloop.capture.__main__ import image_shares
from visionloop.capture.counters import MEANINGS, Counters
from visionloop.capture.health import serve_health
from visionloop.settings import Settings


class Service:
    """A health server."""

    def __init__(self) -> None:
        self.well, self.counters = True, Counters()
        self.server = serve_health(self.counters, "127.0.0.1", 0, is_well=lambda: self.well)

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.server.server_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_health_is_that_of_the_writer(service: Service) -> None:
    status, text = service.get("/healthz")
    assert (status, json.loads(text)["status"]) == (200, "ok")
    service.well = False
    status, text = service.get("/healthz")
    assert (status, json.loads(text)["status"]) == (503, "the writer died")
    assert service.get("/elsewhere")[0] == 404


def test_every_counter_is_told_to_prometheus(service: Service) -> None:
    service.counters.add("dropped", 3)
    lines = service.get("/metrics")[1].splitlines()
    assert "visionloop_capture_dropped_total 3" in lines
    for name in MEANINGS:
        assert f"# TYPE visionloop_capture_{name}_total counter" in lines


def test_an_unknown_counter_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        Counters().add("droped")


def test_a_taken_port_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, pytest.raises(OSError, match="in use"):
        serve_health(Counters(), "127.0.0.1", held.getsockname()[1], is_well=lambda: True)


def test_the_project_file_says_which_images_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "p" / "project.yaml"
    path.parent.mkdir()
    path.write_text(
        "project: p\ntask: {classes: [a, b], image: {height: 8, width: 8}}\nsuite: {scenarios: [{name: overall}]}\n"
        "release: {approval: automatic}\nmonitoring: {capture_images: 0.25}\n"
    )
    share = image_shares(Settings(projects=tmp_path))
    assert share("p") == 0.25
    assert share("stranger") == 1.0  # a model without a project keeps all, and the log says why
    path.write_text("broken: [")
    assert share("p") == 0.25
