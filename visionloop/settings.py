"""Where the servers are: `VISIONLOOP_*` from the environment, else what `visionloop up` wrote down.

Nothing is read at import; call `load_settings()`. Secrets are never values here, only paths of files that hold them.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visionloop.errors import ConfigError

PREFIX = "VISIONLOOP_"
BY_HAND = {"endpoint_keys": "endpoint-keys"}
"""Files that `visionloop up` chooses no place for: field -> the usual name below home."""


class Settings(BaseModel):
    """Addresses and folders. Every field `x` is set by the variable `VISIONLOOP_X`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path(".visionloop")
    """Folder of everything that a run writes."""
    projects: Path = Path("projects")
    """Folder that holds `<name>/project.yaml`."""
    store: str = ""
    """Root of the object store: `s3://bucket` or `file:///folder`."""
    s3_endpoint: str | None = None
    """URL of an S3 server other than AWS."""
    s3_credentials: Path | None = None
    """AWS-style credentials file (profile `default`); unset: boto3's own chain."""
    mlflow_url: str | None = None
    """MLflow tracking server, `http://host:port`."""
    ray_url: str | None = None
    """Ray dashboard and Jobs API, `http://host:port`."""
    ray_token: Path | None = None
    """File with Ray's bearer token."""
    airflow_url: str | None = None
    """Airflow's API server, `http://host:port`."""
    airflow_users: Path | None = None
    """JSON file `{user: password}` of Airflow's users on this machine."""
    endpoint_url: str | None = None
    """The endpoint that product teams call (Envoy), `http://host:port`; HTTP/1.1 and gRPC (h2c) share the port."""
    endpoint_key: Path | None = None
    """File with the API key that this caller sends; unset: the loop's own of `endpoint_keys`, if there are any."""
    endpoint_keys: Path | None = None
    """File of `client: key` lines, mode 0600: the endpoint answers nobody else; unset: it asks for no key."""
    endpoint_headers_seconds: float = Field(15.0, gt=0.0)
    """A request whose head takes longer to arrive is refused."""
    endpoint_request_seconds: float = Field(60.0, gt=0.0)
    """A request that takes longer to arrive whole is refused."""
    endpoint_idle_seconds: float = Field(75.0, gt=0.0)
    """A connection without a request is closed then."""
    endpoint_max_connections: int = Field(10_000, ge=1)
    """Of all clients together; further ones are closed at once."""
    endpoint_heap_mib: int = Field(2048, ge=256)
    """Memory of the endpoint; near it, requests get 503."""
    endpoint_client_requests_per_second: int = Field(0, ge=0)
    """Of one client, which is its API key, else its address; bursts of twice as many. 0: no limit."""
    envoy_admin_url: str | None = None
    """Envoy's admin interface, `http://host:port`."""
    envoy_metrics_url: str | None = None
    """Where Prometheus reads Envoy's statistics, `http://host:port`; the path is `/metrics`, as with the next three."""
    stable_metrics_url: str | None = None
    """Triton's metrics of the stable lane, `http://host:port`."""
    canary_metrics_url: str | None = None
    """Triton's metrics of the canary lane, `http://host:port`."""
    stable_grpc: str | None = None
    """Triton of the stable lane, `host:port` of its gRPC."""
    canary_grpc: str | None = None
    """Triton of the canary lane, `host:port` of its gRPC."""
    traces_url: str | None = None
    """OTLP/HTTP collector that the lanes tell of requests with a `traceparent`, `http://host:port/v1/traces`."""
    signing_key: Path | None = None
    """File with the private key (PEM) that signs candidates."""
    verify_key: Path | None = None
    """File with the public key (PEM): a lane loads only what it verifies."""
    model_repository: Path | None = None
    """Folder with one Triton model repository per lane: `<lane>/<model>/config.pbtxt`."""
    routes: Path | None = None
    """Folder that Envoy watches for clusters and routes."""
    capture_url: str | None = None
    """The capture service's health and counters, `http://host:port`."""

    @property
    def own_key_file(self) -> Path | None:
        """Where the key lies that this caller sends to the endpoint."""
        return self.endpoint_key or self.endpoint_keys

    def need(self, field: str) -> str:
        """Return the value of `field` as text, or raise ConfigError that says how to set it."""
        value = getattr(self, field)
        if value in (None, ""):
            raise ConfigError(f"{PREFIX}{field.upper()} is not set{self._way_out(field)}")
        return str(value)

    def _way_out(self, field: str) -> str:
        if field in BY_HAND:
            path = shlex.quote(str(self.home / BY_HAND[field]))
            return f": name the file first, as in `export {PREFIX}{field.upper()}={path}`"
        if env_file(self.home).exists():
            return (
                f" and the embedded stack in {self.home} was started without what sets it: "
                "`visionloop down`, then `visionloop up`, or set the variable"
            )
        return f" and no embedded stack runs in {self.home}: start one with `visionloop up`, or set the variable"


def env_file(home: Path) -> Path:
    """The file in which the embedded stack writes the addresses it chose (`KEY=value` lines, no secrets)."""
    return home / "stack" / "env"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `VISIONLOOP_*`; variables win over the embedded stack's file. Raises ConfigError for an unknown name."""
    source = os.environ if environ is None else environ
    given = {k[len(PREFIX) :].lower(): v for k, v in source.items() if k.startswith(PREFIX) and v}
    home = Path(given.get("home", ".visionloop")).absolute()
    values: dict[str, str | Path] = {**_read_env_file(env_file(home)), **given, "home": home}
    values["projects"] = Path(values.get("projects", "projects")).absolute()
    for name in (
        "endpoint_key",
        "endpoint_keys",
        "signing_key",
        "verify_key",
    ):  # read by jobs too, which run in folders of their own
        if name in values:
            values[name] = Path(values[name]).absolute()
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        names = ", ".join(f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"the environment has settings that visionloop does not know or cannot read: {names}"
        ) from None


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables that give another process the same settings."""
    dumped = settings.model_dump(mode="json", exclude_none=True)
    return {PREFIX + key.upper(): str(value) for key, value in dumped.items() if value != ""}


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): choose another VISIONLOOP_HOME") from None
    pairs = (line.partition("=") for line in lines if line.startswith(PREFIX))
    return {key[len(PREFIX) :].lower(): value for key, _, value in pairs}
