"""What differs by task: targets, loss, answers. The loop, the suite and the packaging know only the Protocol."""

from typing import TYPE_CHECKING

from visionloop.project import Task

if TYPE_CHECKING:
    from visionloop.tasks.task import VisionTask


def open_task(task: Task) -> "VisionTask":
    """The task that a project file names."""
    from visionloop.tasks.classification import Classification

    return Classification(tuple(task.classes))
