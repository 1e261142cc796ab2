"""From the user's settings and the chosen ports to the addresses that every process of the stack is told."""

from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from visionloop.errors import StackError
from visionloop.settings import PREFIX, Settings, env_file, to_environ
from visionloop.stack.files import write_private
from visionloop.stack.ports import LOOPBACK, Claims, choose, remembered
from visionloop.stack.service import Service
from visionloop.stack.services import ALL

LOCAL_HOSTS = (LOOPBACK, "localhost")


def given_by_user(settings: Settings, services: Collection[Service], environ: Mapping[str, str]) -> dict[str, str]:
    """The addresses in `settings` that the user set, not those that an earlier start of the stack wrote down."""
    try:
        recorded = set(env_file(settings.home).read_text().splitlines())
    except OSError:
        recorded = set()
    fields = {field for service in services for field in service.addresses}
    chosen = {variable: value for variable, value in to_environ(settings).items() if variable in _variables(fields)}
    return {
        variable.removeprefix(PREFIX).lower(): value
        for variable, value in chosen.items()
        if variable in environ or f"{variable}={value}" not in recorded
    }


def check_given(given: Mapping[str, str], services: Collection[Service], home: Path) -> None:
    """Raise StackError for a setting that an embedded server cannot honour."""
    for service in services:
        for field, template in service.addresses.items():
            if field not in given:
                continue
            variable, value = PREFIX + field.upper(), given[field]
            if _port_name(template):
                _port_of(value, variable, service.name)
            elif field == "store":
                if not value.startswith("s3://"):
                    raise StackError(_elsewhere(variable, value, service.name, "is not an s3:// address"))
            elif value != template.format(home=home):
                raise StackError(_elsewhere(variable, value, service.name, f"is not {template.format(home=home)}"))


def choose_ports(
    services: Collection[Service], given: Mapping[str, str], before: Mapping[str, int], claims: Claims
) -> dict[str, int]:
    """Claim all ports: `service.name` -> number. Raises StackError for a fixed port that is taken."""
    chosen: dict[str, int] = {}
    for fixed_only in (True, False):  # what the user fixed goes first, before another service takes it
        for service in services:
            for name, usual in service.ports.items():
                key, field = f"{service.name}.{name}", service.setting_of(name)
                variable = PREFIX + (field or "").upper()
                fixed = _port_of(given[field], variable, service.name) if field and field in given else None
                if (fixed is not None) == fixed_only:
                    wanted = (remembered(before, key), usual)
                    chosen[key] = choose(claims, fixed=fixed, setting=variable, service=service.name, wanted=wanted)
    return chosen


def addressed(
    base: Settings, services: Collection[Service], given: Mapping[str, str], ports: Mapping[str, int]
) -> Settings:
    """`base` with the addresses of `services`, and those that the user gave; a server left out has none.

    What `base` has for an address may be an earlier start's, so nothing of it counts here.
    """
    values: dict[str, str] = {}
    for service in services:
        chosen = {name: ports[f"{service.name}.{name}"] for name in service.ports}
        values |= {field: template.format(home=base.home, **chosen) for field, template in service.addresses.items()}
    own = base.model_dump(exclude={field for service in ALL for field in service.addresses})
    return Settings.model_validate({**values, **given, **own})


def publish(settings: Settings) -> None:
    """Write `<home>/stack/env`, from which every other process takes the addresses."""
    lines = [f"{key}={value}" for key, value in to_environ(settings).items() if key != PREFIX + "HOME"]
    write_private(env_file(settings.home), "\n".join(lines) + "\n")


def _variables(fields: Collection[str]) -> set[str]:
    return {PREFIX + field.upper() for field in fields}


def _port_name(template: str) -> str | None:
    """The port that a template ends with."""
    tail = template.rpartition(":")[2]
    return tail[1:-1] if tail.startswith("{") else None


def _port_of(address: str, variable: str, service: str) -> int:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.hostname not in LOCAL_HOSTS:
        raise StackError(_elsewhere(variable, address, service, "is not on this machine's loopback"))
    if port is None:
        raise StackError(f"{variable}={address} has no port: write it as {LOOPBACK}:PORT or http://{LOOPBACK}:PORT")
    return port


def _elsewhere(variable: str, value: str, service: str, why: str) -> str:
    return f"{variable}={value} {why}: unset it, or leave the embedded server out with `--without {service}`"
