"""Linear probe: a head on frozen features, trained task after task; the plainest baseline."""

from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Logits
from promptax.methods.components.classifier import AbstractClassifier
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class LinearProbe(AbstractClassifier):
    """Sequential training of the head alone, on frozen features."""

    @property
    def train_backbone(self) -> bool:
        """The backbone stays frozen."""
        return False

    @property
    def backbone_rate(self) -> float:
        """The backbone stays frozen."""
        return 0.0

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: PRNGKeyArray
    ) -> tuple[Classifier, None]:
        """Put a zero head on the backbone."""
        return Classifier(backbone, stream.num_classes), None

    def loss(
        self, model: Classifier, state: Any, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Logits, Any]]:
        """Cross-entropy among the task's classes."""
        logits = model.head(batch.query)
        return cross_entropy(logits, batch, task.competing), (logits, state)
