"""Experience replay (Robins, 1995; Chaudhry et al., 2019, arXiv 1902.10486).

Fine-tuning in which each step trains on the batch and on a sample of a buffer of earlier images
(raw, augmented anew):

    loss = mean over both of CE(h(x), y)

over the classes seen so far. Every image of a task is offered to the buffer once, after the first
step that used it, so that the buffer has no image twice. Mammoth's code, from which most reported
numbers come (`models/er.py` at e75a491), offers it again in every epoch, which the setting
`buffer_epochs` "every" does as well, and lets classes compete that no task has shown yet.
"""

from typing import Any

from promptax.core.settings import Replay
from promptax.core.types import Batch, Task
from promptax.methods.base import Key, StepLoss
from promptax.methods.finetune import Finetune
from promptax.methods.rehearsal import AbstractRehearsal


class ER(AbstractRehearsal):
    """Experience replay: fine-tuning on each batch and a sample of earlier images."""

    method: Finetune = Finetune()
    """How backbone and head are trained."""
    replay: Replay = Replay(buffer_size=500)
    """The buffer."""

    def objective(self, model: Any, state: Any, batch: Batch, task: Task, *, key: Key) -> StepLoss:
        """Cross-entropy over the batch and the replayed images alike."""
        return self.method.loss(model, state, batch, task, key=key)
