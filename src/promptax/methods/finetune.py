"""Sequential fine-tuning of everything: what forgetting looks like without a remedy."""

from typing import Any

from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Key, StepLoss
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class Finetune(AbstractClassifier):
    """Sequential training of backbone and head."""

    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[Classifier, None]:
        """Put a zero head on the backbone."""
        return Classifier(backbone, stream.num_classes), None

    def loss(
        self, model: Classifier, state: Any, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy among the competing classes."""
        logits = self.predict(model, state, batch.images, batch.query).logits
        return cross_entropy(logits, batch, task.competing), (logits, state)
