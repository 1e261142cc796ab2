"""Reading as Prometheus does: Envoy must answer, others may be silent, and nobody answers for ever."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visionloop.errors import ConfigError, StoreError
from visionloop.settings import Settings
from visionloop.stores import scrapes
from visionloop.stores.scrapes import scrape


@pytest.fixture
def url() -> Iterator[str]:
    """A server that says its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


DEAD = "http://127.0.0.1:1"


def test_who_is_silent_is_none_and_not_an_error(url: str) -> None:
    found = scrape(Settings(envoy_metrics_url=url, stable_metrics_url=url + "/", canary_metrics_url=DEAD))
    assert (found.envoy, found.lanes, found.capture) == ("/metrics", {"stable": "/metrics", "canary": None}, None)


def test_without_envoy_there_is_no_table(url: str) -> None:
    with pytest.raises(StoreError, match=rf"{DEAD}/metrics does not answer"):
        scrape(Settings(envoy_metrics_url=DEAD))
    with pytest.raises(ConfigError, match="VISIONLOOP_ENVOY_METRICS_URL is not set"):
        scrape(Settings())


def test_an_answer_without_end_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes, "LARGEST_BYTES", len("/metrics") - 1)
    with pytest.raises(StoreError, match="are these metrics"):
        scrape(Settings(envoy_metrics_url=url))
    monkeypatch.setattr(scrapes, "LARGEST_BYTES", len("/metrics"))
    assert scrape(Settings(envoy_metrics_url=url)).envoy == "/metrics"
