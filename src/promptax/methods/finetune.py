"""Sequential fine-tuning of everything: what forgetting looks like without a remedy."""

from typing import ClassVar

from promptax.method import AbstractClassifier


class Finetune(AbstractClassifier):
    """Sequential training of backbone and head."""

    train_backbone: ClassVar[bool] = True
