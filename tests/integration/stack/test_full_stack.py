"""The whole stack, idle: who answers, behind which lock, on which interface, with how much memory."""

import json
import os
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import REPO, running_stack
from visionloop import stack
from visionloop.settings import Settings
from visionloop.stack.process import family, identity_of
from visionloop.stack.status import read_state

LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
VERSIONS = {"s3": "4.48", "ray": "2.60.0", "mlflow": "3.17.2", "triton-stable": "2.51.0", "envoy": "1.40.0"}


def get(url: str, token: str | None = None) -> bytes:
    """Body of a GET."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return bytes(answer.read())


def status_of(url: str) -> int:
    """HTTP status of a GET."""
    try:
        get(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.fixture(scope="module")
def full_settings() -> Iterator[Settings]:
    """Settings of the whole stack."""
    with running_stack() as settings:
        yield settings


def pids_of(settings: Settings) -> set[int]:
    """All processes of the stack."""
    state = read_state(settings.home)
    assert state is not None
    return {pid for entry in state.services.values() if entry.leader for pid in family(entry.leader)}


def test_every_service_runs_and_tells_its_version(full_settings: Settings) -> None:
    found = stack.status(full_settings)
    assert found.is_up, found
    versions = {service.name: service.version for service in found.services}
    assert all(versions.values()), versions
    assert {name: versions[name] for name in VERSIONS} == VERSIONS
    assert {versions[name] for name in versions if name.startswith("airflow")} == {"3.3.2"}


def test_the_idle_stack_takes_less_than_4_gib(full_settings: Settings) -> None:
    assert stack.status(full_settings).rss_mb < 4096


def test_nothing_listens_beyond_the_loopback(full_settings: Settings) -> None:
    pids = pids_of(full_settings)
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    assert len(listening) > 15
    hosts = {
        (c.laddr.ip, c.laddr.port) for c in listening if c.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    }
    assert hosts == set()


def test_ray_answers_only_who_has_the_token(full_settings: Settings) -> None:
    assert status_of(f"{full_settings.ray_url}/api/jobs/") == 401
    assert full_settings.ray_token is not None
    assert json.loads(get(f"{full_settings.ray_url}/api/jobs/", full_settings.ray_token.read_text().strip())) == []


def test_airflow_knows_the_generated_users_and_refuses_others(full_settings: Settings) -> None:
    assert full_settings.airflow_users is not None
    users = json.loads(full_settings.airflow_users.read_text())
    assert {"admin", "viewer"} <= set(users)
    assert status_of(f"{full_settings.airflow_url}/api/v2/dags") == 401
    assert login(full_settings, "admin", users["admin"]) == 201
    assert login(full_settings, "admin", "guessed") == 401


def login(settings: Settings, user: str, password: str) -> int:
    """Status of the request for a token."""
    body = json.dumps({"username": user, "password": password}).encode()
    request = urllib.request.Request(f"{settings.airflow_url}/auth/token", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("pattern", ["stack/secrets/*", "stack/*.json", "stack/env", "logs/*.log"])
def test_what_the_stack_writes_is_for_its_owner_only(full_settings: Settings, pattern: str) -> None:
    files = [path for path in full_settings.home.glob(pattern) if path.is_file()]
    assert files
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == dict.fromkeys(
        (path.name for path in files), "0o600"
    )
    assert stat.S_IMODE((full_settings.home / "stack" / "secrets").stat().st_mode) == 0o700


def test_no_address_file_holds_a_secret(full_settings: Settings) -> None:
    text = (full_settings.home / "stack" / "env").read_text()
    for secret in (full_settings.home / "stack" / "secrets").iterdir():
        assert not [word for word in secret.read_text().split() if len(word) > 15 and word.strip('",') in text]


def test_servers_are_told_the_addresses(full_settings: Settings) -> None:
    state = read_state(full_settings.home)
    assert state is not None
    leader = state.services["ray"].leader
    assert leader is not None and identity_of(leader.pid) == leader
    environ = Path(f"/proc/{leader.pid}/environ").read_bytes().decode().split("\0")
    assert f"VISIONLOOP_MLFLOW_URL={full_settings.mlflow_url}" in environ
    assert f"VISIONLOOP_HOME={full_settings.home}" in environ
    assert os.readlink(f"/proc/{leader.pid}/cwd") == str(REPO)


def test_a_ray_job_runs_in_the_repository_with_all_addresses(full_settings: Settings) -> None:
    assert full_settings.ray_token is not None
    token = full_settings.ray_token.read_text().strip()
    program = (
        "import os, sys, visionloop.settings as s; print('found', os.getcwd(), sys.prefix, s.load_settings().store)"
    )
    body = json.dumps({"entrypoint": f'python -c "{program}"', "submission_id": "stack-test"}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    jobs = f"{full_settings.ray_url}/api/jobs/"
    urllib.request.urlopen(urllib.request.Request(jobs, body, headers), timeout=30).close()
    deadline = time.monotonic() + 120
    while (job := json.loads(get(f"{jobs}stack-test", token)))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    logs = json.loads(get(f"{jobs}stack-test/logs", token))["logs"]
    assert job["status"] == "SUCCEEDED", logs
    assert f"{REPO} {sys.prefix} s3://visionloop" in logs


def test_the_tracking_server_keeps_artifacts_in_the_object_store(full_settings: Settings, tmp_path: Path) -> None:
    import boto3
    import mlflow

    client = mlflow.MlflowClient(full_settings.need("mlflow_url"))
    run = client.create_run(client.create_experiment("stack-test"))
    (tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    keys = {"aws_access_key_id": credential(full_settings, 1), "aws_secret_access_key": credential(full_settings, 2)}
    s3 = boto3.Session(**keys).client("s3", endpoint_url=full_settings.s3_endpoint, region_name="us-east-1")
    listed = s3.list_objects_v2(Bucket="visionloop", Prefix="_mlflow/")
    assert [item["Key"] for item in listed["Contents"] if item["Key"].endswith("/note.txt")]


def credential(settings: Settings, line: int) -> str:
    """A line of the credentials file."""
    assert settings.s3_credentials is not None
    return settings.s3_credentials.read_text().splitlines()[line].partition("=")[2].strip()
