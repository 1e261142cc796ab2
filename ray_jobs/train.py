"""Ray job: train with Ray Train, one worker or many (DDP); workers that die are replaced and go on.

    python -m ray_jobs.train --project fashion --inputs JSON --result URI

Checkpoints are ours and lie in the object store (visionloop/training/checkpoints.py), so that whatever process comes
next goes on from the last one; Ray's own storage holds nothing that is needed.
"""

import logging
import os
import sys
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # read at import; 2 s by default

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.run_stage import parse_arguments, run
from visionloop.errors import StageError
from visionloop.stages.train import Order, Place, work
from visionloop.stores import Stores, connect
from visionloop.training.loop import EpochEnd

log = logging.getLogger("visionloop.job")


def train_on_ray(order: Order, stores: Stores) -> None:
    """Execute an order on the cluster as the project's training section sizes it."""
    training = order.project.training
    scaling = ray.train.ScalingConfig(
        num_workers=training.workers,
        use_gpu=training.gpus_per_worker > 0,
        resources_per_worker={"CPU": training.cpus_per_worker, "GPU": training.gpus_per_worker},
    )
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"order": order, "settings": stores.settings},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=f"{order.project.name}-{order.run}",
            storage_path=str(stores.settings.home / "ray-train"),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise StageError(f"training run {order.run} failed on Ray: {_cause(error)}") from error


def _worker(config: dict[str, Any]) -> None:
    """Runs in each worker process."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    order: Order = config["order"]
    torch.set_num_threads(max(1, int(order.project.training.cpus_per_worker)))
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    place = Place(context.get_world_rank(), context.get_world_size(), device)
    work(order, connect(config["settings"]), place, tell=_tell)


def _tell(end: EpochEnd) -> None:
    """All workers wait for each other here, so that none runs ahead of the checkpoint."""
    ray.train.report({**end.state.history[-1].values, "epoch": end.state.epoch})


def _cause(error: Exception) -> str:
    """The innermost message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(run(parse_arguments(stage="train"), execute=train_on_ray))
