"""A version in a lane, asked past the endpoint: in the sizes that its own signed configuration allows.

What the project file says today may be about another version: one that was packaged before is never measured by it.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visionloop.project import Project
from visionloop.records import Candidate
from visionloop.serving.client.model import Model, of_config
from visionloop.serving.envoy_routes import LANES_SHARE
from visionloop.serving.triton_config import parse
from visionloop.stores import Stores
from visionloop.stores.objects import get_artifact
from visionloop.stores.packaged import CONFIG
from visionloop.stores.triton import DEADLINE_SECONDS, Lane, Late, ModelRefused


@dataclass(frozen=True)
class Loaded:
    """A version that a lane serves."""

    lane: Lane
    version: int
    model: Model
    """As it was packaged; its time-out is the project's of today, since that is the endpoint's."""
    instances: int
    """Of the model, in its lane."""

    def ask(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities [N,K] of images [N,H,W,C].

        Raises ModelRefused also for a candidate that takes longer than its clients may wait while its server is well.
        """
        patience = max(DEADLINE_SECONDS, self.model.timeout_seconds)
        try:
            return self.lane.infer(self.model.name, images, version=self.version, deadline_seconds=patience)
        except Late as error:
            if self.lane.name != "canary" or not self.lane.ready():
                raise
            raise ModelRefused(self.slower_than(patience, len(images))) from error

    def slower_than(self, seconds: float, images: int) -> str:
        """The reason to refuse one that takes longer than this."""
        return (
            f"version {self.version} in the {self.lane.name} lane takes more than {seconds:.1f} s for {images} images, "
            f"which clients may send in one request: while there is a canary a lane has "
            f"{self.model.timeout_seconds / LANES_SHARE:.1f} s, a third of serving.timeout_ms"
        )


def loaded(lane: Lane, project: Project, candidate: Candidate, config: str) -> Loaded:
    """The candidate in a lane; `config` is the text of its own config.pbtxt."""
    found = parse(config)
    model = replace(of_config(found, None), timeout_seconds=project.serving.timeout_ms / 1000)
    return Loaded(lane, candidate.version, model, instances=sum(group.count for group in found.instance_group))


def find_loaded(lane: Lane, project: Project, candidate: Candidate, stores: Stores) -> Loaded:
    """One that was loaded, and verified, before."""
    return loaded(lane, project, candidate, get_artifact(stores.objects, candidate, CONFIG).decode())
