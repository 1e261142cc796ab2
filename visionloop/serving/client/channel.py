"""The connection to an endpoint: its address, the sizes and pauses of gRPC, and what the endpoint says of a model."""

from typing import Any
from urllib.parse import urlsplit

from visionloop.errors import ConfigError

MESSAGE_BYTES = 16 << 20
OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # After a hard restart of the endpoint gRPC would wait a second by default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
DESCRIBE_SECONDS = 10.0
"""How long the endpoint may take to describe a model."""
PORTS = {"http": 80, "https": 443}


def open_channel(kind: Any, url: str) -> Any:
    """A channel of `grpc` or `grpc.aio`; TLS for `https://`, with the system's or gRPC's own root certificates."""
    import grpc

    scheme, address = address_of(url)
    if scheme == "https":
        return kind.secure_channel(address, grpc.ssl_channel_credentials(), options=OPTIONS)
    return kind.insecure_channel(address, options=OPTIONS)


def address_of(url: str) -> tuple[str, str]:
    """Scheme and `host:port` of `http://host[:port]`, `https://host[:port]` or `host:port`. Raises ConfigError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in PORTS or not parts.hostname or port == -1 or parts.username is not None:
        raise ConfigError("expected the endpoint's address as http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port or PORTS[parts.scheme]}"


def config_request(model: str) -> Any:
    """What to ask for a model's description."""
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelConfigRequest(name=model)
