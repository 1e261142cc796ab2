"""`python -m visionloop.capture --grpc-port P --http-port P`: runs until SIGTERM, then writes what is left."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable

from visionloop.capture.buffer import Buffer
from visionloop.capture.counters import Counters
from visionloop.capture.health import serve_health
from visionloop.capture.stream import CaptureStream, open_server
from visionloop.capture.writer import Writer
from visionloop.errors import ConfigError, VisionLoopError
from visionloop.project import load_project, project_file
from visionloop.settings import Settings, load_settings
from visionloop.stores.objects import open_objects

log = logging.getLogger("visionloop.capture")

REREAD_SECONDS = 30.0
LAST_WRITE_SECONDS = 12.0
"""The supervisor kills after 20."""


def main() -> int:
    """Parse, serve, and end with 0, or 1 and one line that says why."""
    parser = argparse.ArgumentParser(prog="visionloop.capture", description=__doc__)
    parser.add_argument("--grpc-port", type=int, required=True, help="where Envoy sends what it samples")
    parser.add_argument("--http-port", type=int, required=True, help="/healthz and /metrics")
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(load_settings(), arguments.host, arguments.grpc_port, arguments.http_port))
    except (VisionLoopError, OSError, RuntimeError) as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1
    return 0


async def serve(settings: Settings, host: str, grpc_port: int, http_port: int) -> None:
    """Run until SIGTERM or SIGINT."""
    counters, buffer = Counters(), Buffer()
    writer = Writer(buffer, open_objects(settings), counters, image_share=image_shares(settings))
    server = await open_server(CaptureStream(buffer, counters), f"{host}:{grpc_port}")
    writer.start()
    health = serve_health(counters, host, http_port, is_well=writer.is_alive)
    log.info("capturing at %s:%d into %s", host, grpc_port, settings.store)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    await ending.wait()
    await server.stop(grace=1.0)
    whole = await asyncio.to_thread(writer.stop, seconds=LAST_WRITE_SECONDS)
    health.shutdown()
    log.info("ended: %d rows written, %d lost%s", counters["written"], counters["lost"], "" if whole else ", cut short")


def image_shares(settings: Settings) -> Callable[[str], float]:
    """Model -> share of its requests that keep their images, from the project file, read again now and then."""
    known: dict[str, tuple[float, float]] = {}

    def share(model: str) -> float:
        read_at, value = known.get(model, (-REREAD_SECONDS, 1.0))
        if time.monotonic() - read_at >= REREAD_SECONDS:
            try:
                value = load_project(project_file(settings.projects, model)).monitoring.capture_images
            except ConfigError as error:
                log.warning("%s: keeping its images as before (%.0f %%): %s", model, value * 100, error)
            known[model] = (time.monotonic(), value)
        return value

    return share


if __name__ == "__main__":
    sys.exit(main())
