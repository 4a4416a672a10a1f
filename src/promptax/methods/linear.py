"""Linear probe: a head on frozen features, task after task; the plainest baseline."""

import equinox as eqx

from promptax.methods.base import AbstractClassifier


class Linear(AbstractClassifier):
    """Sequential training of the head alone, on the frozen features."""

    train_backbone: bool = eqx.field(default=False, init=False)
