"""How a lane tells a trace collector of the requests that callers trace, and of no others.

Envoy passes a caller's W3C `traceparent` on as it came; Triton makes its spans (request, queue, compute) children of
it and sends them by OTLP over HTTP (JSON). Rate 0 is Triton's word for: only requests that bring a trace.
"""

from urllib.parse import urlsplit

from visionloop.errors import ConfigError

SEND_AFTER_MS = 1000


def trace_flags(lane: str, collector: str | None) -> list[str]:
    """Triton's arguments; none without a collector. Raises ConfigError for what is no address of one.

    `collector`: such as `http://127.0.0.1:4318/v1/traces`.
    """
    if not collector:
        return []
    parts = urlsplit(collector)
    if parts.scheme not in ("http", "https") or not parts.hostname or "," in collector:
        raise ConfigError(f"expected traces to go to http://host:port/v1/traces, found {collector!r}")
    settings = [
        *("mode=opentelemetry", "level=TIMESTAMPS", "rate=0"),
        f"opentelemetry,url={collector}",
        f"opentelemetry,resource=service.name=visionloop-{lane}",
        f"opentelemetry,bsp_schedule_delay={SEND_AFTER_MS}",
    ]
    return [f"--trace-config={setting}" for setting in settings]
