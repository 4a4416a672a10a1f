"""Check the library against numbers of the published L2P / DualPrompt code.

    python scripts/parity.py tests/data/*.npz

A file holds a small random model, its inputs, and what the published code made of them (see
`tests/data/README.md`). The model is rebuilt from the file and run through the functions that
training and evaluation use. One line for each quantity: its largest difference relative to
its largest magnitude. The exit code is 1 if one is above 1e-4 or an index differs.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from promptax import nn
from promptax.core.errors import UserError
from promptax.core.settings import Images, Optimizer, Recipe, Schedule
from promptax.core.sharding import make_mesh, put_batch, replicate
from promptax.core.types import Batch, Task
from promptax.data.source import ArraySource
from promptax.data.stream import Split, TaskStream
from promptax.methods.base import is_trained, only
from promptax.methods.components.pool import AbstractPoolMethod
from promptax.training.trainer import Trainer

TOLERANCE = 1e-4
Arrays = Mapping[str, np.ndarray]


class Pair(NamedTuple):
    """A quantity that the library and the published code both compute."""

    name: str
    ours: Any
    theirs: np.ndarray
    like: np.ndarray | None = None
    """If its magnitude is larger than that of `theirs`, differences are relative to it."""


class Golden(AbstractPoolMethod):
    """The model of a file, whatever combination of prompts it has, under the library's losses."""

    pool_size: int
    top_k: int
    pull: float
    vote_group: int | None
    task_mask: bool
    transfer_prompts: bool
    transfer_keys: bool
    stored: nn.PromptedViT
    """The model as the file holds it."""

    @property
    def has_pool(self):
        return self.stored.pool is not None

    def model(self, backbone, num_classes, *, key):
        return self.stored

    def trainable(self, model, task):
        parts = lambda model: (model.pool, model.shared, model.head)
        everything = lambda model: (*parts(model), model.backbone)
        return only(model, parts if model.query_backbone is None else everything)


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden file."""

    meta: Mapping[str, Any]
    arrays: Arrays

    @classmethod
    def read(cls, path: Path) -> "Case":
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(json.loads(str(arrays.pop("meta"))), arrays)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"'{path}' is no golden file: {error}.") from None

    def group(self, name: str) -> dict[str, np.ndarray]:
        found = [key for key in self.arrays if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): self.arrays[key] for key in found}

    def method(self, batch: int) -> Golden:
        pool = self.meta["e_prompt"]
        return Golden(
            pool_size=pool["pool_size"],
            top_k=pool["top_k"],
            pull=self.meta["pull_constraint_coeff"],
            vote_group=batch if pool["batchwise"] else None,
            task_mask=pool["train_mask_by_task"],
            transfer_prompts=pool["transfer_prompts"],
            transfer_keys=pool["transfer_keys"],
            stored=self.model(),
        )

    def model(self) -> nn.PromptedViT:
        params = jax.tree.map(jnp.asarray, self.group("params"))
        encoder = {name: self.group("params")[name] for name in params if _is_encoder(name)}
        backbone = nn.Weights("golden", "", encoder, ()).build(self.meta["arch"]["image"])
        head = nn.Linear(backbone.config.dim, self.meta["num_classes"])
        parts = lambda head: (head.kernel, head.bias)
        return nn.PromptedViT(
            backbone,
            eqx.tree_at(parts, head, (params["head/kernel"], params["head/bias"])),
            self._pool(params),
            self._shared(params),
            query_backbone=backbone if self.meta.get("trainable") == "all" else None,
            readout=self.meta["classifier"],
            query_kind=self.meta["e_prompt"]["embedding_key"],
        )

    def _pool(self, params: Mapping[str, jax.Array]) -> nn.PromptPool:
        pool = self.meta["e_prompt"]
        key = params["prompt_pool/key"] if pool["prompt_key"] else None
        layers = tuple(np.atleast_1d(pool["layers"]).tolist())
        return nn.PromptPool(params["prompt_pool/prompt"], key, layers, pool["top_k"])

    def _shared(self, params: Mapping[str, jax.Array]) -> nn.PrefixPrompt | None:
        shared = self.meta["g_prompt"]
        if shared is None:
            return None
        if not shared["prefix"]:
            raise UserError("a G-prompt of tokens is not part of DualPrompt, nor of promptax.")
        layers = tuple(np.atleast_1d(shared["layers"]).tolist())
        return nn.PrefixPrompt(params["prefix"][jnp.asarray(layers)], layers)

    def named(self, model: nn.PromptedViT, like: Arrays) -> Mapping[str, Any]:
        """The parameters (or gradients) of a model under the names of the file."""
        names: dict[str, Any] = {"head/kernel": model.head.kernel, "head/bias": model.head.bias}
        assert model.pool is not None
        names |= {"prompt_pool/prompt": model.pool.prompt, "prompt_pool/key": model.pool.key}
        if model.shared is not None:
            # The file has a row for every block; those of other blocks keep their value.
            rows = np.asarray(like["prefix"]).copy()
            rows[list(model.shared.layers)] = model.shared.prompt
            names["prefix"] = rows
        if model.backbone.cls_token is not None:
            names |= eqx.filter_jit(nn.vit_leaves)(model.backbone)
        return names


def step_pairs(case: Case) -> Iterator[Pair]:
    """One training step's forward and backward pass, and the same weights in evaluation."""
    given, out = case.group("in"), case.group("out")
    images = jnp.asarray(given["images"])
    labels = jnp.asarray(given["labels"], jnp.int32)
    classes = given["class_mask"] if case.meta["train_class_mask"] else None
    task = _task(case, case.meta["task"] or 0, classes, steps=1)
    ours, train, evaluation, grads = _step(case.method(len(images)), images, labels, task)
    yield from (Pair(name, ours[name], out[name]) for name in ours)
    yield from _forward_pairs("train", train, out)
    yield from _forward_pairs("eval", evaluation, out)
    wanted = case.group("grad")
    zero = {"prefix": np.zeros_like(wanted["prefix"])} if "prefix" in wanted else {}
    yield from _parameter_pairs("grad", case.named(grads, zero), wanted)


@eqx.filter_jit
def _step(method: Golden, images: jax.Array, labels: jax.Array, task: Task):
    model = method.stored
    query = method.query(model, images)
    batch = Batch(
        images=images,
        label=labels,
        weight=jnp.ones(len(images)),
        query=query,
        raw=jnp.zeros(images.shape, jnp.uint8),
        is_new=jnp.ones(len(images), bool),
    )
    params, frozen = eqx.partition(model, is_trained(method.trainable(model, task)))

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grads(params):
        return method.loss(eqx.combine(params, frozen), None, batch, task, key=jr.key(0))

    (loss, (train_logits, _)), grads = loss_and_grads(params)
    vote = None if method.vote_group is None else nn.Vote(batch.weight, method.vote_group)
    slot = task.index if method.task_mask else None
    train = model(images, query, vote=vote, task=slot)
    evaluation = model(images, query, vote=vote)
    ours = {
        "query": query,
        "loss": loss,
        "train_logits": train_logits,
        "eval_logits": method.predict_by_vote(model, images, query, vote).logits,
    }
    return ours, train, evaluation, grads


def _forward_pairs(mode: str, output: nn.Output, out: Arrays) -> Iterator[Pair]:
    assert output.selection is not None
    similarity = output.selection.similarity.sum() / len(output.logits)
    for name, ours in (
        ("features", output.features),
        ("prompt_idx", output.selection.index),
        ("reduce_sim", similarity),
    ):
        if f"{mode}_{name}" in out:
            yield Pair(f"{mode}_{name}", ours, out[f"{mode}_{name}"])


def _parameter_pairs(group: str, ours: Mapping[str, Any], wanted: Arrays) -> Iterator[Pair]:
    for name, value in wanted.items():
        # The bias of a key moves all scores of a query alike, so that without a prefix its
        # gradient is nothing but rounding: it is measured by that of the kernel.
        kernel = name.removesuffix("bias") + "kernel" if name.endswith("/key/bias") else name
        yield Pair(f"{group}/{name}", ours[name], value, wanted.get(kernel))


def trajectory_pairs(case: Case) -> Iterator[Pair]:
    """A whole run over several tasks, through the trainer."""
    given, out = case.group("in"), case.group("out")
    images, labels = given["images_uint8"], given["labels"].astype(np.int32)
    batch_size = images.shape[1]
    method, mesh = case.method(batch_size), make_mesh(1)
    recipe = _recipe(case.meta["optimizer"], batch_size, images.shape[2])
    stream = _stream(case, images, labels)
    trainer, state = Trainer.create(
        method, method.stored.backbone, stream, recipe, mesh=mesh, key=jr.key(0)
    )
    losses, norms = [], []
    steps = case.meta["steps_per_task"]
    for index, split in enumerate(stream.tasks):
        task = replicate(_task(case, index, split.classes, steps), mesh)
        state = trainer.begin_task(state, task)
        # The published order of the batches, not the one that the trainer would draw.
        for step in range(index * steps, (index + 1) * steps):
            weight = np.ones(batch_size, np.float32)
            host = {"image": images[step], "label": labels[step], "weight": weight}
            state, metrics = trainer.step(state, put_batch(host, mesh), task)
            losses.append(metrics.loss)
            norms.append(metrics.grad_norm)
        state = trainer.end_task(state, task)
    yield Pair("losses", np.asarray(losses), out["losses"])
    yield Pair("grad_norms", np.asarray(norms), out["grad_norms"])
    model = trainer.model(state)
    ours = case.named(model, case.group("params"))
    yield from _parameter_pairs("final", ours, case.group("final"))
    logits = _evaluate(method, model, jnp.asarray(given["eval_images"]))
    yield Pair("eval_logits", logits, out["eval_logits"])


def _stream(case: Case, images: np.ndarray, labels: np.ndarray) -> TaskStream:
    """The tasks of a trajectory; without a class mask every task has all classes.

    Args:
        case: The golden file.
        images: `[steps, batch, height, width, channel]`, the steps of one task after another.
        labels: `[steps, batch]`.
    """
    tasks, every_class = case.meta["tasks"], range(case.meta["num_classes"])
    masked = case.meta["train_class_mask"]
    source = ArraySource(images.reshape(-1, *images.shape[2:]), labels.ravel())
    positions = np.split(np.arange(labels.size), len(tasks))
    stages = tuple(
        Split(f"task {number}", tuple(classes if masked else every_class), index)
        for number, (classes, index) in enumerate(zip(tasks, positions, strict=True))
    )
    names = tuple(f"class {label}" for label in every_class)
    return TaskStream("golden", source, source, names, tasks=stages, test_sets=stages)


@eqx.filter_jit
def _evaluate(method: Golden, model: nn.PromptedViT, images: jax.Array) -> jax.Array:
    voters = len(images)
    vote = nn.Vote(jnp.ones(voters), voters) if method.vote_group else None
    return method.predict_by_vote(model, images, method.query(model, images), vote).logits


def vit_pairs(path: Path) -> Iterator[Pair]:
    """A plain checkpoint: every leaf comes back as it was read."""
    weights = nn.read_npz(path)
    ours = eqx.filter_jit(nn.vit_leaves)(weights.build())
    yield from (Pair(name, ours[name], value) for name, value in weights.leaves.items())


def _recipe(optimizer: Mapping[str, Any], batch_size: int, image: int) -> Recipe:
    return Recipe(
        Optimizer(
            optimizer["name"],
            learning_rate=optimizer["learning_rate"] * 256 / batch_size,
            momentum=optimizer.get("momentum", 0.9),
            nesterov=optimizer.get("nesterov", False),
            clip_norm=optimizer.get("clip_global_norm"),
            reset=optimizer.get("reinit_each_task", True),
        ),
        Schedule(1, batch_size),
        Images(image, None, crop_area=(1.0, 1.0), flip=False),
    )


def _task(case: Case, index: int, classes: Any, steps: int) -> Task:
    count = case.meta["num_classes"]
    classes = range(count) if classes is None else np.asarray(classes).tolist()
    return Task.of(max(index, 0), classes, num_classes=count, steps=steps)


def _is_encoder(name: str) -> bool:
    return name.startswith(("Transformer/", "embedding/")) or name == "cls"


def difference(ours: Any, theirs: np.ndarray, like: np.ndarray | None = None) -> float:
    """The largest difference relative to the largest magnitude; 0 or infinity for indices."""
    ours = np.asarray(ours)
    if ours.shape != theirs.shape:
        return np.inf
    if theirs.dtype.kind in "iu":
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    magnitude = lambda x: np.abs(x).max(initial=0)
    largest = max(magnitude(theirs), 0 if like is None else magnitude(like)) or 1.0
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0) / largest)


def pairs(path: Path) -> Iterator[Pair]:
    """All quantities of a file."""
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
    if "meta" not in names:
        return vit_pairs(path)
    case = Case.read(path)
    return trajectory_pairs(case) if "in/images_uint8" in names else step_pairs(case)


def main(paths: list[str]) -> int:
    """Print a line for each quantity, and return the exit code."""
    if not paths:
        print(__doc__)
        return 2
    failed = 0
    for path in paths:
        for name, ours, theirs, like in pairs(Path(path)):
            relative = difference(ours, theirs, like)
            bad = not relative <= TOLERANCE
            failed += bad
            print(f"{Path(path).name}  {name}  {relative:.1e}{'  FAILED' if bad else ''}")
    print(f"{failed} quantities differ" if failed else "all quantities agree")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
