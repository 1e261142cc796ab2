"""Where Envoy listens, and where what stands behind it does."""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Addresses:
    """Where the listener opens and what stands behind it; lanes and capture as `host:port`."""

    listener_port: int
    admin_port: int
    stable_grpc: str
    stable_http: str
    canary_grpc: str
    canary_http: str
    capture_grpc: str | None = None
    """None: nothing is captured."""
    listener_host: str = LOOPBACK
    metrics_port: int | None = None
    """Where Prometheus reads Envoy's statistics (`envoy_metrics`); None: nowhere."""
    metrics_host: str = LOOPBACK

    def of(self, lane: str, protocol: str) -> str:
        """`host:port` of a lane's `grpc` or `http`."""
        return str(getattr(self, f"{lane}_{protocol}"))
