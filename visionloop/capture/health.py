"""The HTTP side: `/healthz` for the supervisor, `/metrics` for Prometheus."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from visionloop import __version__
from visionloop.capture.counters import Counters


def serve_health(counters: Counters, host: str, port: int, *, is_well: Callable[[], bool]) -> ThreadingHTTPServer:
    """A started server; `shutdown()` ends it. Raises OSError when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            well = is_well()
            state = {"status": "ok" if well else "the writer died", "version": __version__}
            pages = {
                "/healthz": (200 if well else 503, "application/json", json.dumps(state)),
                "/metrics": (200, "text/plain; version=0.0.4", counters.prometheus()),
            }
            status, kind, text = pages.get(self.path, (404, "text/plain", "not found\n"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """The supervisor asks every few seconds: nothing to say about that."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
