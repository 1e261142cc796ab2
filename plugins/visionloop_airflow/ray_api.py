"""Ray's Jobs REST API: submit, look, read the log, stop. Async, because the triggerer waits for many jobs at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from visionloop.errors import ConfigError, StoreError
from visionloop.settings import Settings, load_settings

TIMEOUT_SECONDS = 15.0
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class Unreachable(StoreError):
    """Ray does not answer now; it may in a moment."""


@dataclass(frozen=True)
class Job:
    """A job as Ray knows it. `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    submission_id: str
    status: str
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Will its status never change again?"""
        return self.status in ENDED


def open_jobs(settings: Settings | None = None) -> "RayJobs":
    """The Jobs API behind `settings`, or behind those of this process as they are now."""
    settings = settings or load_settings()
    return RayJobs(settings.need("ray_url"), _token(settings.ray_token))


class RayJobs:
    """One Ray head. Raises Unreachable where waiting may help, StoreError where it doesn't."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Without TLS no certificates are read, which takes long enough to hold up the triggerer's other waits.
        tls = self.address.startswith("https://")
        self._client = httpx.AsyncClient(base_url=self.address, headers=headers, timeout=TIMEOUT_SECONDS, verify=tls)

    async def __aenter__(self) -> "RayJobs":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self._client.__aexit__(*failure)

    async def submit(self, submission_id: str, entrypoint: str, metadata: dict[str, str], num_cpus: float) -> bool:
        """Start a job; False when one of this name was there already."""
        body: dict[str, Any] = {"submission_id": submission_id, "entrypoint": entrypoint, "metadata": metadata}
        if num_cpus:
            body["entrypoint_num_cpus"] = num_cpus
        answer = await self._send("POST", "/api/jobs/", json=body)
        if not answer.is_success and "already exists" in answer.text:
            return False
        self._checked(answer)
        return True

    async def job(self, submission_id: str) -> Job | None:
        """The job, or None when Ray does not know it (a head that was started anew has forgotten it)."""
        answer = await self._send("GET", _path(submission_id))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return _job(self._checked(answer).json())

    async def jobs(self) -> list[Job]:
        """All jobs that were submitted by name."""
        found = self._checked(await self._send("GET", "/api/jobs/")).json()
        return [_job(item) for item in found if item.get("submission_id")]

    async def log(self, submission_id: str) -> str:
        """All that the job has printed until now, without the colours of a terminal."""
        text = self._checked(await self._send("GET", f"{_path(submission_id)}/logs")).json()["logs"] or ""
        return COLOUR.sub("", text)

    async def stop(self, submission_id: str) -> None:
        """Ask Ray to end the job (SIGTERM, then SIGKILL); harmless for one that has ended or is unknown."""
        answer = await self._send("POST", f"{_path(submission_id)}/stop")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._checked(answer)

    def link(self, submission_id: str) -> str:
        """Where a person sees the job and its log."""
        return f"{self.address}/#/jobs/{quote(submission_id, safe='')}"

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return await self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise Unreachable(f"Ray at {self.address} cannot be reached ({type(error).__name__})") from None

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        lines = answer.text.strip().splitlines() or ["no explanation"]
        said = f"Ray at {self.address} answered {answer.status_code}: {lines[-1][:300]}"
        if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise StoreError(f"{said}. Does VISIONLOOP_RAY_TOKEN name the token file of this cluster?")
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unreachable(said)
        raise StoreError(said)


def _path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _job(item: dict[str, Any]) -> Job:
    return Job(item["submission_id"], item["status"], item.get("message") or "", item.get("metadata") or {})


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"VISIONLOOP_RAY_TOKEN: {path} cannot be read: {error.strerror}") from None
