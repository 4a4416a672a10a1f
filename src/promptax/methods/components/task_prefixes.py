"""A ViT with a prefix for each task, in which a task's prefix builds on those before it."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from promptax.core.types import Task
from promptax.data.stream import TaskStream
from promptax.methods.base import Scalar
from promptax.nn.prompt import check_prompts
from promptax.nn.prompted import check_blocks, class_token
from promptax.nn.vit import Linear, ViT


class TaskPrefixes(eqx.Module):
    """A frozen ViT with a prefix for each task and one head for all classes."""

    backbone: ViT
    prompt: Float32[Array, "tasks layers 2 length heads head_dim"]
    head: Linear
    layers: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        vit: ViT,
        stream: TaskStream,
        *,
        length: int,
        layers: tuple[int, ...],
        key: PRNGKeyArray,
    ):
        """Draw prefixes uniformly from [-1, 1); the head is zero.

        Args:
            vit: The ViT.
            stream: The stream, which tells the number of prefixes and of classes.
            length: Tokens of a prefix.
            layers: The blocks that get one.
            key: Randomness of the prefixes.

        Raises:
            UserError: There are too many prompts, or the ViT has no such blocks.
        """
        check_blocks(vit, layers)
        tasks = len(stream.tasks)
        check_prompts(tasks, length, layers)
        heads = vit.config.heads
        shape = (tasks, len(layers), 2, length, heads, vit.dim // heads)
        self.backbone = vit
        # Drawn flat, for the same values: XLA takes seconds to compile a draw of six axes.
        self.prompt = jr.uniform(key, (math.prod(shape),), minval=-1.0).reshape(shape)
        self.head = Linear(vit.dim, stream.num_classes)
        self.layers = layers

    def features(
        self,
        images: Float[Array, "batch height width channel"],
        prompt: Float[Array, "*batch layers 2 length heads head_dim"],
    ) -> Float32[Array, "batch dim"]:
        """The input of the head, with one prefix for all images or one for each of them."""
        prompt = jnp.broadcast_to(prompt, (images.shape[0], *prompt.shape[-5:]))
        prefixes = dict(zip(self.layers, jnp.moveaxis(prompt, 1, 0), strict=True))
        return class_token(self.backbone, images, prefixes=prefixes)

    def from_previous(self, task: Task) -> Float32[Array, "tasks layers 2 length heads head_dim"]:
        """The prefixes, with that of the task as a copy of that of the task before."""
        before = self.prompt[jnp.maximum(task.index - 1, 0)]
        return self.prompt.at[task.index].set(before)

    def ensemble(self, task: Task, share: Scalar) -> Float[Array, "layers 2 length heads head_dim"]:
        """The prefix of a task, in which the mean of all earlier ones has a share."""
        earlier = jnp.arange(len(self.prompt)) < task.index
        mean = jnp.einsum("t,t...->...", earlier / jnp.maximum(task.index, 1), self.prompt)
        share = jnp.where(task.index > 0, share, 0.0)
        return (1 - share) * self.prompt[task.index] + share * mean
