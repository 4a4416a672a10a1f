"""The common part of methods without prompts: a head on the features of any backbone."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from promptax.core.errors import UserError
from promptax.core.types import Task
from promptax.methods.base import (
    AbstractMethod,
    ModelImages,
    Prediction,
    Query,
    no_query,
    only,
    optional,
    union,
)
from promptax.methods.components.task_rows import own_columns
from promptax.nn.classifier import Classifier


class AbstractClassifier(AbstractMethod):
    """A method that trains `nn.Classifier`: the head, and the backbone more slowly or not at all.

    This class defines what is trained and how images are classified; the method defines `init` and
    `loss`.
    """

    train_backbone: eqx.AbstractVar[bool]
    backbone_rate: eqx.AbstractVar[float]

    reached_classes = optional()
    """`reached_classes(task) -> Bool[Array, " classes"]`: the classes whose logits have a gradient,
    if these are not just the ones that compete."""

    def __check_init__(self):
        if not 0 <= self.backbone_rate <= 1:
            raise UserError(f"backbone rate is {self.backbone_rate}; expected between 0 and 1.")

    def trainable(self, model: Classifier, task: Task) -> PyTree:
        """The head, and the backbone at its own rate if it is trained."""
        reached = task.competing if self.reached_classes is None else self.reached_classes(task)
        head = only(model, lambda model: model.head, own_columns(task, reached))
        if not self.train_backbone:
            return head
        return union(head, only(model, lambda model: model.backbone, self.backbone_rate))

    def query(self, model: Classifier, images: ModelImages) -> Query:
        """The feature itself if the backbone is frozen: each image then passes through it once per
        run."""
        return no_query(images) if self.train_backbone else model.features(images)

    def predict(
        self, model: Classifier, state: Any, images: ModelImages, query: Query
    ) -> Prediction:
        """Apply the head to the feature."""
        return Prediction(model(images) if self.train_backbone else model.head(query))
