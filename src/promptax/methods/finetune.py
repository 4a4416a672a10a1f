"""Sequential fine-tuning of everything: what forgetting looks like without a remedy."""

import equinox as eqx

from promptax.method import AbstractClassifier


class Finetune(AbstractClassifier):
    """Sequential training of backbone and head."""

    train_backbone: bool = eqx.field(default=True, init=False)
