"""The training loop: one for a notebook, a test and Ray; with several workers it meets the others by torch.distributed.

Determined by seed, data and number of epochs; a run that goes on from a checkpoint ends where it would have ended.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from visionloop.errors import StageError
from visionloop.project import Task, Training
from visionloop.tasks import open_task
from visionloop.training.augment import augment
from visionloop.training.checkpoints import Checkpoint, EpochMetrics, TrainState, pack, unpack
from visionloop.training.model import Architecture, VisionModel, build, from_bytes, parameters, to_bytes
from visionloop.training.order import seed_of, shares, steps_per_epoch
from visionloop.training.precision import Precision, choose
from visionloop.training.progress import Progress
from visionloop.training.samples import Samples

log = logging.getLogger(__name__)
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Shard:
    """What one worker trains on: all samples, and which worker of how many it is (its part is cut batch by batch)."""

    train: Samples
    validation: Samples
    rank: int = 0
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Recipe:
    """How to train: the project's sections, the seed, and the file of pretrained weights if there is one."""

    task: Task
    training: Training
    seed: int
    pretrained: Path | None = None


@dataclass(frozen=True)
class EpochEnd:
    """What is reported after each epoch; `capture()` makes the checkpoint (call it before returning)."""

    state: TrainState
    capture: Callable[[], Checkpoint]


Report = Callable[[EpochEnd], None]


def train(shard: Shard, recipe: Recipe, *, report: Report, resume: Checkpoint | None = None) -> VisionModel:
    """Train, or go on from `resume`; every worker reports every epoch. Raises StageError when the loss diverges."""
    return _Training(shard, recipe, resume).run(report)


class _Training:
    """One worker's training: model, optimiser, schedule, and how far it has come."""

    def __init__(self, shard: Shard, recipe: Recipe, resume: Checkpoint | None) -> None:
        self.shard, self.recipe, self.config = shard, recipe, recipe.training
        self.task = open_task(recipe.task)
        self.precision: Precision = choose(self.config.precision, shard.device)
        self.steps = steps_per_epoch(len(shard.train), self.config.batch_size, shard.workers)
        self.model = self._model(resume)
        self.parallel = self._wrapped()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(  # Smith and Topin 2018, arXiv:1708.07120
            self.optimizer, self.config.learning_rate, total_steps=self.config.epochs * self.steps
        )
        self.state = self._state(resume)
        self.images = torch.from_numpy(shard.train.images).to(shard.device)
        self.targets = torch.from_numpy(shard.train.targets).to(shard.device)

    def run(self, report: Report) -> VisionModel:
        """All epochs that are left."""
        done, seconds = self.state.epoch, self.state.seconds
        if self.shard.rank == 0:
            log.info("training %s: %s", self.config.backbone, self._about())
        progress = Progress(self.config.epochs, self.steps, self._batch(), done_epochs=done)
        started = time.monotonic()
        for epoch in range(done + 1, self.config.epochs + 1):
            metrics = self._epoch(epoch, progress) | self._validate()
            self.state = self._advanced(epoch, metrics, seconds + time.monotonic() - started)
            if self.shard.rank == 0:
                log.info("epoch %d/%d: %s", epoch, self.config.epochs, _shown(metrics))
            report(EpochEnd(self.state, self._capture))
        return self.model.eval()

    def _epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        self.parallel.train()
        torch.manual_seed(seed_of(self.recipe.seed, epoch, self.shard.rank))  # for dropout
        total = torch.zeros((), device=self.shard.device)
        cut = {"seed": self.recipe.seed, "epoch": epoch, "rank": self.shard.rank, "workers": self.shard.workers}
        for step, share in enumerate(shares(len(self.shard.train), self.config.batch_size, **cut), 1):
            total += self._step(share.index.to(self.shard.device), share.draws.to(self.shard.device))
            if self.shard.rank == 0 and progress.due():
                progress.show(epoch, step, self._finite(total / step, epoch))
        return {"train_loss": self._finite(self._everywhere(total) / (self.steps * self.shard.workers), epoch)}

    def _step(self, index: Tensor, draws: Tensor) -> Tensor:
        images = augment(self.images[index], draws, self.config.augment)
        with self.precision.autocast():
            logits, _ = self.parallel(images)
        loss = self.task.loss(logits, self.targets[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Accuracy and loss on the validation split, each worker on its part."""
        count = len(self.shard.validation)
        if not count:
            return {}
        self.model.eval()
        sums = torch.zeros(2, device=self.shard.device, dtype=torch.float64)
        mine = torch.arange(self.shard.rank, count, self.shard.workers)
        for index in torch.split(mine, EVALUATION_BATCH):
            images = torch.from_numpy(self.shard.validation.images[index.numpy()]).to(self.shard.device)
            targets = torch.from_numpy(self.shard.validation.targets[index.numpy()]).to(self.shard.device)
            with self.precision.autocast():
                logits, _ = self.model(images)
            sums[0] += self.task.correct(logits, targets)
            sums[1] += self.task.loss(logits, targets) * len(index)
        accuracy, loss = (self._everywhere(sums) / count).tolist()
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    def _model(self, resume: Checkpoint | None) -> VisionModel:
        architecture = Architecture(self.config.backbone, self.task.outputs, self.recipe.task.image)
        model = (
            from_bytes(resume.weights)
            if resume
            else build(architecture, seed=self.recipe.seed, pretrained=self.recipe.pretrained)
        )
        model.channels_last = self.config.channels_last
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return model.to(self.shard.device).to(memory_format=layout)

    def _wrapped(self) -> nn.Module:
        if self.shard.workers == 1:
            return self.model
        return DistributedDataParallel(self.model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _state(self, resume: Checkpoint | None) -> TrainState:
        if resume is None:
            about = {"device": self.shard.device, "precision": self.precision.name}
            return TrainState(epoch=0, epochs=self.config.epochs, samples_seen=0, seconds=0.0, history=[], **about)
        saved = unpack(resume.optimizer)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        log.info("going on after epoch %d of %d", resume.state.epoch, self.config.epochs)
        return resume.state

    def _advanced(self, epoch: int, metrics: dict[str, float], seconds: float) -> TrainState:
        entry = EpochMetrics(epoch=epoch, at_ms=time.time_ns() // 1_000_000, values=metrics)
        seen = self.state.samples_seen + self.steps * self._batch()
        change = {"epoch": epoch, "seconds": seconds, "samples_seen": seen, "history": [*self.state.history, entry]}
        return self.state.model_copy(update=change)

    def _capture(self) -> Checkpoint:
        moving = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        return Checkpoint(state=self.state, weights=to_bytes(self.model), optimizer=pack(moving))

    def _batch(self) -> int:
        return min(self.config.batch_size, len(self.shard.train)) // self.shard.workers * self.shard.workers

    def _everywhere(self, value: Tensor) -> Tensor:
        """Sum over all workers."""
        if self.shard.workers > 1:
            dist.all_reduce(value)
        return value

    def _finite(self, loss: Tensor, epoch: int) -> float:
        value = float(loss)
        if not torch.isfinite(torch.tensor(value)):
            raise StageError(
                f"the loss became {value} in epoch {epoch}: lower training.learning_rate "
                f"(now {self.config.learning_rate}), or set training.precision to fp32"
            )
        return value

    def _about(self) -> str:
        return (
            f"{parameters(self.model)} parameters, {len(self.shard.train)} samples, {self.config.epochs} epochs of "
            f"{self.steps} steps, {self.shard.workers} worker(s) on {self.shard.device} with "
            f"{torch.get_num_threads()} thread(s), {self.precision.name}"
        )


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
