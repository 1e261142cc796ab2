"""Addresses: what the user set is honoured or refused, what an earlier start wrote is not mistaken for it."""

import socket
from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.settings import Settings, load_settings
from visionloop.stack.addresses import addressed, check_given, choose_ports, given_by_user, publish
from visionloop.stack.mlflow import MLFLOW
from visionloop.stack.ports import Claims
from visionloop.stack.s3 import S3
from visionloop.stack.services import ALL


def settings(home: Path, **values: object) -> Settings:
    return Settings.model_validate({"home": home, **values})


def test_an_address_of_an_earlier_start_is_not_the_users(tmp_path: Path) -> None:
    publish(settings(tmp_path, mlflow_url="http://127.0.0.1:5000"))
    loaded = load_settings({"VISIONLOOP_HOME": str(tmp_path)})
    assert loaded.mlflow_url == "http://127.0.0.1:5000"
    assert given_by_user(loaded, ALL, {}) == {}
    assert given_by_user(loaded, ALL, {"VISIONLOOP_MLFLOW_URL": "x"}) == {"mlflow_url": "http://127.0.0.1:5000"}
    changed = loaded.model_copy(update={"mlflow_url": "http://127.0.0.1:5001"})
    assert given_by_user(changed, ALL, {}) == {"mlflow_url": "http://127.0.0.1:5001"}


def test_the_published_file_gives_everybody_the_same_settings(tmp_path: Path) -> None:
    own = settings(tmp_path, projects=tmp_path / "p", store="s3://visionloop", stable_grpc="127.0.0.1:8011")
    publish(own)
    assert load_settings({"VISIONLOOP_HOME": str(tmp_path)}) == own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mlflow_url": "http://mlflow.corp:5000"},
            r"MLFLOW_URL=http://mlflow.corp:5000 .*--without mlflow",
        ),
        ({"mlflow_url": "http://127.0.0.1"}, "VISIONLOOP_MLFLOW_URL=http://127.0.0.1 has no port"),
        ({"mlflow_url": "http://127.0.0.1:99999"}, "has no port"),
        ({"store": "file:///data"}, "VISIONLOOP_STORE=file:///data is not an s3:// address"),
        ({"s3_credentials": "/etc/keys"}, "VISIONLOOP_S3_CREDENTIALS=/etc/keys is not .*--without s3"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(StackError, match=message):
        check_given(given, [S3, MLFLOW], tmp_path)


def test_settings_that_can_be_honoured_pass(tmp_path: Path) -> None:
    given = {"mlflow_url": "http://localhost:5000", "store": "s3://mine", "s3_endpoint": "http://127.0.0.1:9000"}
    check_given(given, [S3, MLFLOW], tmp_path)
    check_given({"mlflow_url": "https://mlflow.corp"}, [S3], tmp_path)  # that server is left out


def test_ports_given_remembered_and_usual(tmp_path: Path) -> None:
    claims = Claims()
    mine, remembered, other = free_ports(3)
    try:
        given = {"mlflow_url": f"http://127.0.0.1:{mine}"}
        ports = choose_ports([MLFLOW, S3], given, {"s3.http": remembered, "mlflow.http": other}, claims)
        assert ports["mlflow.http"] == mine
        assert ports["s3.http"] == remembered
        assert len(set(ports.values())) == len(ports) == len(S3.ports) + 1
    finally:
        claims.close()


def test_what_the_user_gave_wins_and_the_rest_is_filled_in(tmp_path: Path) -> None:
    ports = {f"s3.{name}": number for number, name in enumerate(S3.ports, 4000)} | {"mlflow.http": 5000}
    base = settings(tmp_path, ray_url="http://127.0.0.1:1")
    found = addressed(base, [S3, MLFLOW], {"store": "s3://mine"}, ports)
    assert found.s3_endpoint == f"http://127.0.0.1:{ports['s3.http']}"
    assert found.s3_credentials == tmp_path / "stack" / "secrets" / "s3-credentials"
    assert found.store == "s3://mine"
    assert found.ray_url is None  # a service that is not in the stack leaves no stale address


def test_a_setting_that_is_no_address_is_kept_whatever_it_is(tmp_path: Path) -> None:
    """Each field is the address of some server, or the user's own: one that is neither would be lost."""
    chosen = {
        "endpoint_key": tmp_path / "key",
        "endpoint_keys": tmp_path / "keys",
        "traces_url": "http://127.0.0.1:4318/v1/traces",
        "endpoint_headers_seconds": 1.5,
        "endpoint_request_seconds": 2.5,
        "endpoint_idle_seconds": 3.5,
        "endpoint_max_connections": 4,
        "endpoint_heap_mib": 512,
        "endpoint_client_requests_per_second": 6,
    }
    base = settings(tmp_path, projects=tmp_path / "p", **chosen)
    found = addressed(base, [MLFLOW], {}, {"mlflow.http": 5000})
    assert {name: getattr(found, name) for name in chosen} == chosen
    assert (found.home, found.projects) == (tmp_path, tmp_path / "p")
    addresses = {field for service in ALL for field in service.addresses}
    assert {"home", "projects", *chosen} == set(Settings.model_fields) - addresses
    publish(found)
    assert load_settings({"VISIONLOOP_HOME": str(tmp_path)}) == found


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    return ports
