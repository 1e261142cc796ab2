"""Airflow plugin: the loop's report pages (evaluation, drift, validation), for users who may see the project's DAGs.

Every Airflow process loads this file, but only the API server needs the application: it is made at the first request.
"""

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class Pages:
    """The ASGI application, made when it is first called."""

    _app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if self._app is None:
            from visionloop_airflow.pages import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


class VisionloopPages(AirflowPlugin):
    """`/visionloop/pages/<dag>/<artifact>`."""

    name = "visionloop_pages"
    fastapi_apps = [{"app": Pages(), "url_prefix": "/visionloop", "name": "visionloop pages"}]  # noqa: RUF012
