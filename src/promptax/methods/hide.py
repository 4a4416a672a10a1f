"""HiDe-Prompt (Wang et al., NeurIPS 2023, arXiv 2310.07234).

Class-incremental prediction is decomposed into three problems (section 4): the class within a
task, the identity of the task, and the class among those of all tasks.

- Within a task: a prefix e_t of its own, which starts from that of the task before and is used as
  p_t = (1 - alpha) e_t + alpha mean of p_1 .. p_(t-1). Its loss is cross-entropy among the task's
  classes plus lambda times a contrastive term, which keeps features apart from one another and from
  the mean features mu of earlier classes.
- Task identity: a second head on features without prompts.
- All tasks: after each task, both heads are trained on features drawn from Gaussians of each class.
  For the first head, these are Gaussians of features with the task's prompt, and for the second, of
  features without prompts.

Where the paper differs, this follows the authors' code (thu-ml/HiDe-Prompt, 0ed4333,
engines/hide_promtp_wtp_and_tap_engine.py and hide_tii_engine.py): with M the rows of all mu and of
the batch, the contrastive term is the mean cross-entropy of softmax(M M^T / tau) and the unit
matrix, from the first task on; the second head tells classes, and the task follows from the class;
the first task is not aligned; the head has a tenth of the prompts' learning rate.

Options that the authors' scripts set and the defaults here do not: statistics by 10 centroids of
each class, which are then the mu (`class_statistics`); a contrastive term over the 24 images of
each device rather than the whole batch (`contrast_rows`); alignment without weight decay, with
steps for the classes of earlier tasks alone (`align_decay`, `align_steps`); and a second head that
is a residual MLP and is trained on images before it is aligned (`identity_head`,
`identity_epochs`), here on the features of images as they are, where theirs are augmented.

Unlike in their code, the head starts at zero, where theirs is drawn from a normal distribution; the
statistics are those of a class in a task, so that classes may come again; and keys and values of a
prefix, which their code mixes (a reshape instead of a transpose, peft/prompt/hide_prompt.py), are
kept apart.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from promptax.core.settings import (
    LARGEST,
    MOST_IN_BATCH,
    SMALLEST,
    require,
    require_count,
)
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import (
    AbstractMethod,
    Key,
    ModelImages,
    Prediction,
    Query,
    StepLoss,
    only,
    union,
)
from promptax.methods.components.alignment import Alignment, masked_cross_entropy
from promptax.methods.components.gaussians import AbstractClassStatistics
from promptax.methods.components.losses import contrastive_in_shares, cross_entropy
from promptax.methods.components.pairs import Pairs
from promptax.methods.components.statistics import FeatureStatistics
from promptax.methods.components.task_identity import IdentityTraining, TaskIdentity
from promptax.methods.components.task_prefixes import TaskPrefixes
from promptax.methods.components.task_rows import own_columns, own_row, train_rows
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import check_prompts
from promptax.nn.prompted import require_vit
from promptax.nn.vit import Linear


class HiDeState(eqx.Module):
    """The state of HiDe-Prompt: the head that recognises tasks, and feature statistics by slot."""

    identity: TaskIdentity
    pairs: Pairs
    """The pair of a task and a class that each slot of the statistics belongs to."""
    plain: AbstractClassStatistics
    """Of features without prompts."""
    prompted: AbstractClassStatistics
    """Of features with the prompt of their task."""


class HiDePrompt(AbstractMethod):
    """HiDe-Prompt: a prefix for each task, a head that recognises tasks, and aligned heads."""

    length: int = 5
    """Length of a prefix."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with a prefix."""
    ensemble: float = 0.01
    """Share that the mean of earlier prefixes has in the prefix of a task (alpha)."""
    contrast: float = 0.1
    """Weight of the contrastive term (lambda)."""
    contrast_rows: int | None = None
    """Number of images that are contrasted with one another: a batch is cut into shares of this
    size, and the term is the mean over the shares. None: the whole batch."""
    temperature: float = 0.8
    """Temperature of the contrastive term (tau)."""
    head_rate: float = 0.1
    """Learning rate of the head, as a fraction of that of the prefixes."""
    statistics: FeatureStatistics = FeatureStatistics()
    """How the features of a class are summarised."""
    alignment: Alignment = Alignment(
        align_epochs=30, align_samples=120, align_batch=120, align_rate=0.005
    )
    """How the heads are trained on drawn features."""
    identity: IdentityTraining = IdentityTraining()
    """How the head that recognises tasks is trained."""

    def __check_init__(self):
        check_prompts(1, self.length, self.layers)
        for name, share in (("ensemble", self.ensemble), ("head rate", self.head_rate)):
            require(0 <= share <= 1, name, share, "between 0 and 1")
        require(0 <= self.contrast <= LARGEST, "contrast", self.contrast, f"0 to {LARGEST:g}")
        tau = self.temperature
        require(SMALLEST <= tau <= LARGEST, "temperature", tau, f"{SMALLEST:g} to {LARGEST:g}")
        if self.contrast_rows is not None:
            require_count("contrast rows", self.contrast_rows, MOST_IN_BATCH)

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[TaskPrefixes, HiDeState]:
        """Make heads, empty statistics, and prefixes as the authors' code does."""
        vit = require_vit(backbone)
        prompt_key, identity_key = jr.split(key)
        model = TaskPrefixes(vit, stream, length=self.length, layers=self.layers, key=prompt_key)
        pairs = Pairs.empty(stream)
        empty = lambda: self.statistics.empty(len(pairs.pair), vit.dim, stream)
        most = self.statistics.feature_sample
        identity = self.identity.init(stream, vit.dim, most, key=identity_key)
        return model, HiDeState(identity, pairs, plain=empty(), prompted=empty())

    def trainable(self, model: TaskPrefixes, task: Task) -> PyTree:
        """The task's own prefix, and the head at its own rate."""
        own = train_rows(own_row(len(model.prompt), task))
        head = only(model, lambda model: model.head, self.head_rate * own_columns(task))
        return union(only(model, lambda model: model.prompt, own), head)

    def begin_task(
        self, model: TaskPrefixes, state: HiDeState, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, HiDeState]:
        """Start the task's prefix from that of the task before."""
        prompt = model.from_previous(task)
        return eqx.tree_at(lambda model: model.prompt, model, prompt), state

    def query(self, model: TaskPrefixes, images: ModelImages) -> Query:
        """The feature of each image without prompts."""
        return model.backbone(images).astype(jnp.float32)

    def loss(
        self, model: TaskPrefixes, state: HiDeState, batch: Batch, task: Task, *, key: Key
    ) -> StepLoss:
        """Cross-entropy and the contrastive term."""
        features = model.features(batch.images, model.ensemble(task, self.ensemble))
        logits = model.head(features)
        contrast = contrastive_in_shares(
            *state.prompted.centres(),
            features,
            batch.weight,
            share=self.contrast_rows or len(features),
            temperature=self.temperature,
        )
        loss = cross_entropy(logits, batch, task.competing) + self.contrast * contrast
        return loss, (logits, state)

    def observe(
        self, model: TaskPrefixes, state: HiDeState, batch: Batch, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, HiDeState]:
        """Add the features of a batch, without prompts and with the task's prefix."""
        slot = state.pairs.slot(task)[batch.label]
        features = model.features(batch.images, model.ensemble(task, self.ensemble))
        return model, HiDeState(
            identity=state.identity.observed(batch.query, batch.label, batch.weight),
            pairs=state.pairs,
            plain=state.plain.add(batch.query, slot, batch.weight),
            prompted=state.prompted.add(features, slot, batch.weight),
        )

    def end_task(
        self, model: TaskPrefixes, state: HiDeState, task: Task, *, key: Key
    ) -> tuple[TaskPrefixes, HiDeState]:
        """Keep the prefix as it was used, and align both heads from the second task on."""
        prompt = model.prompt.at[task.index].set(model.ensemble(task, self.ensemble))
        pairs = state.pairs.after(task)
        head_key, identity_key, order_key, plain_key, prompted_key = jr.split(key, 5)
        plain = state.plain.concluded(key=plain_key)
        prompted = state.prompted.concluded(key=prompted_key)

        def aligned() -> Linear:
            loss = lambda logits, draws: masked_cross_entropy(logits, draws, task.seen)
            factors = prompted.factors().relabelled(pairs.class_of_slot)
            return self.alignment(model.head, factors, loss, task, learned=pairs.used, key=head_key)

        head = jax.lax.cond(task.index > 0, aligned, lambda: model.head)
        identity = self.identity.trained(state.identity, pairs, task, key=order_key)
        identity = self.identity.aligned(
            identity, plain, pairs, task, self.alignment, key=identity_key
        )
        model = eqx.tree_at(lambda model: (model.prompt, model.head), model, (prompt, head))
        return model, HiDeState(identity, pairs, plain, prompted)

    def predict(
        self, model: TaskPrefixes, state: HiDeState, images: ModelImages, query: Query
    ) -> Prediction:
        """Use the prefix of the task that is recognised from the feature without prompts."""
        chosen = state.identity.recognise(query, state.pairs)
        logits = model.head(model.features(images, model.prompt[chosen]))
        return Prediction(logits, chosen[:, None])
