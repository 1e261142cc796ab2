"""A small Ray Jobs API over HTTP, in a thread: jobs that the test moves on, a head that can vanish."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from aiohttp import web


class FakeRay:
    """Answers as Ray 2.60's dashboard does: 401 without the token, 400 for a name twice, 404 for an unknown job."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._port = 0
        self.away = False

    def __enter__(self) -> "FakeRay":
        self._thread.start()
        self._do(self._serve())
        return self

    def __exit__(self, *failure: object) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def vanish(self) -> None:
        """Every connection breaks."""
        self.away = True

    def come_back(self) -> None:
        """Answer again, with the same jobs."""
        self.away = False

    def add(self, name: str, status: str, *, log: str = "", message: str = "", **metadata: str) -> None:
        """A job that is there already, or another state of it."""
        self.jobs[name] = {"submission_id": name, "status": status, "message": message, "metadata": metadata}
        self.logs[name] = log

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_get("/api/jobs/{name}", self._get)
        app.router.add_get("/api/jobs/{name}/logs", self._log)
        app.router.add_post("/api/jobs/{name}/stop", self._stop)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.away:
            assert request.transport
            request.transport.abort()
            return web.Response()
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        return await handler(request)

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"ValueError: Job with submission_id {name} already exists.")
        self.submitted.append(name)
        self.jobs[name] = {**body, "status": "RUNNING", "message": ""}
        self.logs[name] = ""
        return web.json_response({"job_id": name, "submission_id": name})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([*self.jobs.values(), {"submission_id": None, "type": "DRIVER"}])

    async def _get(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        return web.json_response(job) if job else web.Response(status=404, text="does not exist")

    async def _log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.logs[request.match_info["name"]]})

    async def _stop(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.jobs:
            return web.Response(status=404, text="does not exist")
        self.stopped.append(name)
        self.jobs[name]["status"] = "STOPPED"
        return web.json_response({"stopped": True})
