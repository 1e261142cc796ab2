"""What Envoy, the lanes and the capture service tell Prometheus, read as Prometheus would."""

import logging
import urllib.error
import urllib.request

from visionloop.errors import StoreError
from visionloop.serving.envoy_clusters import LANES
from visionloop.serving.traffic import Scrape
from visionloop.settings import Settings

log = logging.getLogger(__name__)

LARGEST_BYTES = 64 << 20
SECONDS = 5.0
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def scrape(settings: Settings) -> Scrape:
    """One reading of all. Raises StoreError when Envoy does not answer; another's silence is part of the answer."""
    return Scrape(
        envoy=_read(settings.need("envoy_metrics_url")),
        lanes={lane: _read_if_there(getattr(settings, f"{lane}_metrics_url")) for lane in LANES},
        capture=scrape_capture(settings),
    )


def scrape_capture(settings: Settings) -> str | None:
    """What the capture service says, None where it does not answer."""
    return _read_if_there(settings.capture_url)


def _read_if_there(url: str | None) -> str | None:
    try:
        return _read(url) if url else None
    except StoreError as error:
        log.info("%s", error)
        return None


def _read(url: str) -> str:
    address = f"{url.rstrip('/')}/metrics"
    try:
        with _opener.open(address, timeout=SECONDS) as answer:
            text: bytes = answer.read(LARGEST_BYTES + 1)
    except (OSError, urllib.error.URLError) as error:
        raise StoreError(f"{address} does not answer: {error}") from None
    if len(text) > LARGEST_BYTES:
        raise StoreError(f"{address} answers more than {LARGEST_BYTES >> 20} MiB: are these metrics?")
    return text.decode(errors="replace")
