"""One question to a server on the loopback: a short time-out, no proxy, and why there is no answer."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoAnswer(Exception):
    """The server did not answer as expected; the message is the reason."""


def fetch(url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 3.0) -> bytes:
    """The body of a 2xx answer. Raises NoAnswer."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own addresses
    try:
        with _opener.open(request, timeout=timeout_s) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        raise NoAnswer(f"{url} answers {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NoAnswer(f"{url} does not answer ({reason})") from None


def fetch_json(url: str, *, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON of a 2xx answer. Raises NoAnswer."""
    body = fetch(url, headers=headers)
    try:
        return json.loads(body)
    except ValueError:
        raise NoAnswer(f"{url} answers something that is not JSON") from None
