"""Serves a project's report pages from the object store, below Airflow's own address and its login.

The pages are made by other tools (Great Expectations, Evidently), so they run in a sandbox: their scripts see neither
Airflow's cookies nor its API.
"""

from pathlib import PurePosixPath
from typing import Annotated

from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Path
from fastapi.responses import Response

from visionloop import layout
from visionloop.errors import ConfigError, NotFound, StoreError
from visionloop.settings import load_settings
from visionloop.stores import connect

SANDBOX = {
    "Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=3600",
}
MEDIA_TYPES = {".html": "text/html", ".json": "application/json"}


def make_app() -> FastAPI:
    """One route; whoever may read the DAG may read its project's pages."""
    app = FastAPI(title="visionloop pages", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route(
        "/pages/{dag_id}/{artifact:path}",
        show,
        dependencies=[Depends(requires_access_dag("GET"))],
        response_class=Response,
    )
    return app


def show(dag_id: Annotated[str, Path()], artifact: Annotated[str, Path()]) -> Response:
    """A page, or the figures behind one, of the project that the DAG belongs to."""
    project, _, verb = dag_id.rpartition("__")
    path = PurePosixPath(artifact)
    if not verb or path.suffix not in MEDIA_TYPES or ".." in path.parts:
        raise HTTPException(404, "only a project's pages (.html, .json) are shown here")
    try:
        page = connect(load_settings()).objects.get(f"{layout.checked(project)}/artifacts/{artifact}")
    except (NotFound, ConfigError) as error:
        raise HTTPException(404, str(error)) from None
    except StoreError as error:
        raise HTTPException(503, str(error)) from None
    return Response(page, headers=SANDBOX, media_type=MEDIA_TYPES[path.suffix])
