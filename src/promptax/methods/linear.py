"""Linear probe: a head on frozen features, trained task after task; the plainest baseline."""

from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod, Logits, Loss, ModelImages, Prediction, Query, only
from promptax.methods.components.losses import cross_entropy
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.classifier import Classifier


class LinearProbe(AbstractMethod):
    """Sequential training of the head alone, on frozen features."""

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: PRNGKeyArray
    ) -> tuple[Classifier, None]:
        """Put a zero head on the backbone."""
        return Classifier(backbone, stream.num_classes), None

    def trainable(self, model: Classifier, task: Task) -> PyTree:
        """The head."""
        return only(model, lambda model: model.head)

    def query(self, model: Classifier, images: ModelImages) -> Query:
        """The feature of each image, which passes the backbone once per run."""
        return model.features(images)

    def loss(
        self, model: Classifier, state: Any, batch: Batch, task: Task, *, key: PRNGKeyArray
    ) -> tuple[Loss, tuple[Logits, Any]]:
        """Cross-entropy among the task's classes."""
        logits = model.head(batch.query)
        return cross_entropy(logits, batch, task.competing), (logits, state)

    def predict(
        self,
        model: Classifier,
        state: Any,
        images: ModelImages,
        query: Query,
    ) -> Prediction:
        """Apply the head to the feature."""
        return Prediction(model.head(query))
