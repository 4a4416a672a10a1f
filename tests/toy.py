"""A stream of three unequal tasks that anything can learn, and every method in a tiny size."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import Mesh

from promptax import data, methods, nn
from promptax.core.settings import Evaluation, Images, Optimizer, Recipe, Replay, Schedule
from promptax.core.types import Batch, RawBatch, Task
from promptax.data.augment import prepare_eval
from promptax.methods import L2P, Alignment, DualPrompt, Rehearsal
from promptax.methods.base import AbstractMethod, Prediction, no_query, only
from promptax.methods.components.first_session import FirstSession
from promptax.methods.components.losses import cross_entropy
from promptax.methods.components.statistics import FeatureStatistics
from promptax.methods.components.task_identity import IdentityTraining
from promptax.training.callbacks import Callback
from promptax.training.compiles import Compiles, count_compiles
from promptax.training.evaluate import Evaluator, Measurement, can_vote
from promptax.training.learner import Learner
from promptax.training.loop import StepDone, TaskEnded, make_learner, run_stream
from promptax.training.metrics import AccuracyMatrix
from promptax.training.state import TrainState
from promptax.training.trainer import Trainer


def slow_except(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Values of a test's parameter, of which only those in `fast` are in the fast suite."""
    slow = pytest.mark.slow
    return [value if value in fast else pytest.param(value, marks=slow) for value in values]


TASKS = ((0, 1), (2, 3, 4), (5, 6))
CLASSES = 7
CONFIG = nn.ViTConfig(patch=8, dim=32, depth=3, heads=4, mlp=64, image=16)
METHODS: dict[str, AbstractMethod] = {
    "l2p": L2P(pool_size=6, prompt_length=2, top_k=2, vote_group=4),
    "dualprompt": DualPrompt(pool_size=2, e_length=2, e_layers=(1, 2), g_length=2, g_layers=(0, 1)),
    "finetune": methods.Finetune(),
    "linear": methods.LinearProbe(),
}
REPLAY = Replay(buffer_size=24, buffer_kind="balanced", replay_batch=8)
ALIGNMENT = Alignment(align_epochs=2, align_samples=32, align_batch=16)
OTHERS: dict[str, AbstractMethod] = {
    "ncm": methods.NCM(),
    "ranpac": methods.RanPAC(width=64, ridge=1.0),
    "ranpac-adapter": methods.RanPAC(
        width=64, ridge=1.0, first_session=FirstSession("adapter", adapter_width=4)
    ),
    "er": methods.ER(methods.Finetune(train_backbone=False), REPLAY),
    "derpp": methods.DERPP(methods.Finetune(train_backbone=False), replay=REPLAY),
    "ewc": methods.EWC(coefficient=1.0, train_backbone=False),
    "lwf": methods.LwF(train_backbone=False),
    "coda": methods.CODAPrompt(components=6, length=4, layers=(0, 1)),
    "hide": methods.HiDePrompt(length=2, layers=(0, 1), alignment=ALIGNMENT),
    "hide-images": methods.HiDePrompt(
        length=2,
        layers=(0, 1),
        contrast_rows=4,
        statistics=FeatureStatistics("centroids", centroids=2),
        alignment=replace(ALIGNMENT, align_decay=0.0, align_steps="earlier"),
        identity=IdentityTraining("residual", identity_epochs=20, identity_rate=1e-2),
    ),
    "sprompts": methods.SPrompts(length=2, clusters=2),
    "slca": methods.SLCA(backbone_rate=0.1, alignment=ALIGNMENT),
    "sldc": methods.SLDC(rank=2, alignment=ALIGNMENT),
    "l2p-r": Rehearsal(METHODS["l2p"], REPLAY),
}
"""Those with a memory or parameters for each task, and one that is given a memory."""
RECIPE = Recipe(
    Optimizer(learning_rate=0.5),
    Schedule(epochs=3, batch_size=16),
    Images(16, None, crop_area=(1.0, 1.0), flip=False),
    Evaluation(batch_size=8, task_incremental=True),
)


def recipe_for(method: AbstractMethod) -> Recipe:
    """The recipe, with a vote beside it where there is a pool."""
    trains_backbone = getattr(method, "train_backbone", False)
    votes = can_vote(method)
    rate = 0.03 if trains_backbone else 0.2 if votes else 0.5
    evaluation = replace(RECIPE.evaluation, vote_group=4 if votes else None)
    return replace(RECIPE, optimizer=Optimizer(learning_rate=rate), evaluation=evaluation)


@eqx.filter_jit
def make_vit(**options: Any) -> nn.ViT:
    return nn.ViT(CONFIG, key=jr.key(0), **options)


def make_stream() -> data.TaskStream:
    """Each class is a pattern of coloured squares with a little noise; classes differ in size."""
    random = np.random.default_rng(0)
    squares = random.integers(20, 235, (CLASSES, 4, 4, 3))
    patterns = squares.repeat(4, axis=1).repeat(4, axis=2)

    def draw(counts: list[int]) -> data.ArraySource:
        labels = np.repeat(np.arange(CLASSES), counts)
        noise = random.integers(-15, 16, (len(labels), 16, 16, 3))
        return data.ArraySource((patterns[labels] + noise).astype(np.uint8), labels)

    train = draw([10 + 3 * label for label in range(CLASSES)])
    test = draw([3 + label % 3 for label in range(CLASSES)])
    return data.class_incremental(train, test, tasks=TASKS, name="toy")


class Pixels(AbstractMethod):
    """A user's own method, registered nowhere: a linear classifier on raw pixels."""

    poison: int = -1
    """The task whose loss is not a number."""

    def init(self, backbone, stream, *, key):
        head = nn.Linear(16 * 16 * 3, stream.num_classes, key=key)
        return {"head": head, "unused": jnp.ones(3)}, None

    def trainable(self, model, task):
        return only(model, lambda model: model["head"])

    def loss(self, model, state, batch, task, *, key):
        logits = model["head"](batch.images.reshape(len(batch.images), -1))
        loss = cross_entropy(logits, batch, task.competing)
        return jnp.where(task.index == self.poison, jnp.nan, loss), (logits, state)

    def predict(self, model, state, images, query):
        return Prediction(model["head"](images.reshape(len(images), -1)))


EVERY: dict[str, AbstractMethod] = {**METHODS, **OTHERS, "own": Pixels()}
"""What has to pass the contract."""


class Seen(Callback):
    """Remembers what `fit` calls."""

    def __init__(self):
        self.expected = 0
        self.steps = 0
        self.tasks = []
        self.end = None

    def on_start(self, steps):
        self.expected = steps

    def on_step(self, event):
        self.steps += 1

    def on_task(self, event):
        self.tasks.append(event)

    def on_end(self, fit):
        self.end = fit


@dataclass
class Fitted:
    """A method trained on the toy stream, with all that was seen on the way."""

    trainer: Trainer
    start: TrainState
    end: TrainState
    evaluator: Evaluator
    compiles: Compiles
    states: list[TrainState] = field(default_factory=list)
    """The state after each task."""
    evaluations: list[Measurement] = field(default_factory=list)
    matrices: dict[str, AccuracyMatrix] = field(default_factory=dict)
    learner: Learner | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def model(self) -> Any:
        """After the last task."""
        return self.trainer.model(self.states[-1])


def run(
    method: AbstractMethod,
    mesh: Mesh,
    *,
    seed: int = 0,
    stream: data.TaskStream | None = None,
    counted: bool = False,
) -> Fitted:
    """Train a method on a stream, the toy stream if None.

    If it is `counted`, nothing is found compiled, so `compiles` counts what this run needs whatever
    ran before it in this process.
    """
    if counted:
        jax.clear_caches()
    stream = make_stream() if stream is None else stream
    recipe = recipe_for(method)
    key = jr.key(seed)
    trainer, state = Trainer.create(method, make_vit(), stream, recipe, mesh=mesh, key=key)
    evaluator = Evaluator(trainer, stream)
    start = copy(state)
    losses = []
    with count_compiles() as compiles:
        fitted = Fitted(trainer, start, start, evaluator, compiles)
        for event in run_stream(trainer, stream, state, seed=seed, evaluator=evaluator):
            if isinstance(event, StepDone):
                losses.append(event.metrics.loss)
            elif isinstance(event, TaskEnded):
                fitted.end = copy(event.state)
                fitted.states.append(fitted.end)
                assert event.measurement is not None, "every task is measured"
                fitted.evaluations.append(event.measurement)
                fitted.matrices = event.matrices
                fitted.learner = make_learner(trainer, stream, fitted.end, event.task_number)
    fitted.losses = [float(loss) for loss in losses]
    return fitted


def copy(tree: Any) -> Any:
    """What a donating step cannot take away, on the same devices."""
    put = lambda x: jax.device_put(jnp.copy(x), x.sharding) if eqx.is_array(x) else x
    return jax.tree.map(put, tree)


def make_batch(random: np.random.Generator, size: int = 16, classes: tuple[int, ...] = (0, 1)):
    """Random raw images with labels of some classes."""
    images = random.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
    labels = random.choice(classes, size).astype(np.int32)
    return RawBatch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(size))


def prepared(raw: RawBatch, method: AbstractMethod, model: Any, **known: Any) -> Batch:
    """A batch as the step gives it to a method, with images as they are."""
    images = prepare_eval(raw.image, RECIPE.images)
    query = no_query(images)
    if method.query is not None:
        query = eqx.filter_jit(method.query)(model, images)
    fields = {"query": query, "is_new": jnp.ones(len(images), bool), **known}
    return Batch(images, raw.label, raw.weight, raw=raw.image, **fields)


def make_task(index: int = 0, classes: tuple[int, ...] = (0, 1), steps: int = 10) -> Task:
    return Task.of(index, classes, num_classes=CLASSES, steps=steps)


def same_bits(first: Any, second: Any) -> bool:
    """Whether two trees have the same leaves, bit for bit."""
    raw = lambda x: jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    one, two = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (first, second))
    assert len(one) == len(two) > 0
    return all(np.array_equal(raw(a), raw(b)) for a, b in zip(one, two, strict=True))
