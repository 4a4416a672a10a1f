"""Linear probe: a head on frozen features, trained task after task; the plainest baseline."""

from typing import ClassVar

from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Key, StepLoss
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class LinearProbe(AbstractClassifier):
    """Sequential training of the head alone, on frozen features."""

    # Constants of the class rather than fields, so that they are no flags.
    train_backbone: ClassVar[bool] = False  # pyright: ignore[reportIncompatibleVariableOverride]
    backbone_rate: ClassVar[float] = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, None]:
        """Put a zero head on the backbone."""
        return Classifier(backbone, stream.num_classes), None

    def loss(
        self, model: Classifier, state: None, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy among the task's classes."""
        logits = model.head(batch.query)
        return cross_entropy(logits, batch, task.competing), (logits, state)
