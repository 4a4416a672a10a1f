"""Linear probe: a head on frozen features, task after task; the plainest baseline."""

from typing import ClassVar

from promptax.method import AbstractClassifier


class Linear(AbstractClassifier):
    """Sequential training of the head alone, on the frozen class token."""

    train_backbone: ClassVar[bool] = False
