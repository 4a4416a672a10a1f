"""Nearest class mean on frozen features (Mensink et al., TPAMI 2013; on pre-trained features:
Janson et al., 2022, arXiv 2210.04428, and, with cosines, SimpleCIL: Zhou et al., IJCV 2024,
arXiv 2303.07338).

With f(x) the feature of an image and m_c the mean feature of the training images of class c, the
class of x is the one with the largest

    cos(f(x), m_c)              or              -|f(x) - m_c|^2.

Both are linear heads, up to terms that are the same for all classes: kernel m_c / |m_c| without a
bias, or kernel m_c and bias -|m_c|^2 / 2.

The sums are collected in one pass over each task and without a gradient, so the result does not
depend on the order of tasks. In a domain-incremental stream a class has one mean over all domains.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from promptax.core.precision import exact_einsum
from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractMethod, Key, ModelImages, Prediction, Query
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import l2_normalize


class ClassSums(eqx.Module):
    """Sums over the training images of each class seen so far."""

    feature: Float32[Array, "classes dim"]
    count: Float32[Array, " classes"]


class NCM(AbstractMethod):
    """Nearest class mean: no training, one pass over the frozen features."""

    metric: Literal["cosine", "euclidean"] = "cosine"
    """How the distance of a feature to a mean is measured."""

    def init(
        self, backbone: AbstractBackbone, stream: TaskStream, *, key: Key
    ) -> tuple[AbstractBackbone, ClassSums]:
        """Keep the backbone as it is, and start with empty sums."""
        classes = stream.num_classes
        return backbone, ClassSums(jnp.zeros((classes, backbone.dim)), jnp.zeros(classes))

    def query(self, model: AbstractBackbone, images: ModelImages) -> Query:
        """The feature of each image."""
        return model(images).astype(jnp.float32)

    def observe(
        self, model: AbstractBackbone, state: ClassSums, batch: Batch, task: Task, *, key: Key
    ) -> tuple[AbstractBackbone, ClassSums]:
        """Add the features of a batch to the sums of their classes."""
        member = jax.nn.one_hot(batch.label, len(state.count)) * batch.weight[:, None]
        feature = state.feature + exact_einsum("bc,bd->cd", member, batch.query)
        return model, ClassSums(feature, state.count + member.sum(0))

    def predict(
        self, model: AbstractBackbone, state: ClassSums, images: ModelImages, query: Query
    ) -> Prediction:
        """Compare the feature with the mean of each class."""
        mean = state.feature / jnp.maximum(state.count, 1)[:, None]
        kernel, bias = nearest_mean_head(mean, self.metric)
        return Prediction(query @ kernel + bias)


def nearest_mean_head(
    mean: Float32[Array, "classes dim"], metric: Literal["cosine", "euclidean"]
) -> tuple[Float[Array, "dim classes"], Float[Array, " classes"]]:
    """Kernel and bias of the linear head whose largest score is that of the nearest mean."""
    if metric == "cosine":
        return l2_normalize(mean).T, jnp.zeros(len(mean))
    return mean.T, -0.5 * jnp.square(mean).sum(1)
