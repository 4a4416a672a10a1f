"""Joint training: all tasks at once, the upper bound of every continual learner."""

from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractClassifier


class Joint(AbstractClassifier):
    """Training on all tasks at once: the head, or everything."""

    train_backbone: bool = False
    """Train the backbone too."""

    def stream(self, stream: TaskStream) -> TaskStream:
        """One stage with the examples and classes of all."""
        return stream.joint()
