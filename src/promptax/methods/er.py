"""Experience replay (Robins, 1995; Chaudhry et al., 2019, arXiv 1902.10486).

Each step trains on the batch and on a sample of a buffer of earlier images (raw, augmented anew):

    loss = mean over both of CE(h(x), y)

over the classes seen so far. Every image of a task is offered to the buffer once, after the first
step that used it. Mammoth's code, from which most reported numbers come, offers it again in every
epoch, and lets classes compete that no task has shown yet.
"""

from promptax.core.errors import UserError
from promptax.core.settings import Replay
from promptax.methods.base import AbstractFinetuned, AbstractRehearsal


class ER(AbstractRehearsal, AbstractFinetuned):
    """Experience replay: fine-tuning on each batch and a sample of earlier images."""

    train_backbone: bool = True
    """Train the backbone too."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a fraction of the head's."""
    replay: Replay = Replay(buffer_size=500)
    """The buffer."""

    def __check_init__(self):
        if not self.replay.buffer_size:
            raise UserError("experience replay needs a buffer of at least 1 image, got 0.")
