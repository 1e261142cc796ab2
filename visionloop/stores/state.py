"""Small mutable documents (open retrain request, rollout in progress): compare-and-swap, never a blind write."""

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from visionloop import layout
from visionloop.errors import Conflict, NotFound
from visionloop.stores.objects import Objects

D = TypeVar("D", bound=BaseModel)
TRIES = 20


class State:
    """Documents by project and name."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self, kind: type[D], project: str, name: str) -> D | None:
        """The document, or None."""
        try:
            return kind.model_validate_json(self._objects.get(layout.state(project, name)))
        except NotFound:
            return None

    def update(self, kind: type[D], project: str, name: str, change: Callable[[D | None], D]) -> D:
        """Write `change(current)`; `change` is called again when somebody else wrote in between. Raises Conflict."""
        key = layout.state(project, name)
        body, wanted = b"", None
        for _ in range(TRIES):
            try:
                data, etag = self._objects.get_tagged(key)
            except NotFound:
                data, etag = b"", ""
            if wanted is not None and data == body:
                return wanted  # it was written, and the answer to that was lost: the try after it found a conflict
            current = kind.model_validate_json(data) if etag else None
            wanted = change(current)
            if wanted == current:
                return wanted
            body = wanted.model_dump_json(indent=1).encode()
            try:
                self._objects.replace(key, body, etag) if etag else self._objects.put_new(key, body)
            except Conflict:
                continue
            return wanted
        raise Conflict(f"{key} was changed {TRIES} times while this process tried to change it: try again")
