"""Sequential fine-tuning of everything: what forgetting looks like without a remedy."""

import equinox as eqx
from jaxtyping import Array, Bool

from promptax.core.types import Task
from promptax.methods.base import AbstractFinetuned


class Finetune(AbstractFinetuned):
    """Sequential training of backbone and head."""

    class_mask: bool = True
    """Let the classes of a task compete among themselves in training, as all methods here do.
    Without, they compete with all that were seen, as in textbook fine-tuning: the head learns
    that an old class is never the answer."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""
    train_backbone: bool = eqx.field(default=True, init=False)

    def competing(self, task: Task) -> Bool[Array, " classes"]:
        """The classes of the task, or all seen ones."""
        return task.classes if self.class_mask else task.seen
