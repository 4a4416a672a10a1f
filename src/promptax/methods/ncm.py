"""Nearest class mean on frozen features (Mensink et al., TPAMI 2013; on pre-trained features:
Janson et al., 2022, arXiv 2210.04428, and, with cosines, SimpleCIL: Zhou et al., IJCV 2024,
arXiv 2303.07338).

With f(x) the feature of an image and m_c the mean feature of the training images of class c, the
class of x is the one with the largest

    cos(f(x), m_c)              or              -|f(x) - m_c|^2,

which a linear head gives up to terms that are the same for all classes: kernel m_c / |m_c| without
a bias, or kernel m_c and bias -|m_c|^2 / 2.

The sums are streamed, in one pass over each task and without a gradient, so the outcome does not
depend on the order of tasks. In a domain-incremental stream a class has one mean over all domains.
"""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray, PyTree

from promptax.core.types import Batch, Task
from promptax.data.stream import TaskStream
from promptax.methods.base import AbstractClassifier, ModelImages
from promptax.nn.classifier import Classifier
from promptax.nn.prompt import l2_normalize


class Sums(eqx.Module):
    """Of the features of each class."""

    feature: Float32[Array, "classes dim"]
    count: Float32[Array, " classes"]


class NCM(AbstractClassifier):
    """Nearest class mean: no training, one pass over the frozen features."""

    metric: Literal["cosine", "euclidean"] = "cosine"
    """How near a feature is to a mean."""
    train_backbone: bool = eqx.field(default=False, init=False)

    steps: ClassVar[bool] = False
    observes: ClassVar[bool] = True

    def memory(self, model: Classifier, stream: TaskStream) -> Sums:
        """No feature yet."""
        classes, dim = stream.num_classes, model.backbone.dim
        return Sums(jnp.zeros((classes, dim)), jnp.zeros(classes))

    def observe(
        self,
        model: Classifier,
        memory: Sums,
        images: ModelImages,
        batch: Batch,
        task: Task,
        *,
        key: PRNGKeyArray,
    ) -> Sums:
        """Add the features of a batch."""
        label = jax.nn.one_hot(batch.label, len(memory.count)) * batch.weight[:, None]
        feature = memory.feature + label.T @ model.features(images)
        return Sums(feature, memory.count + label.sum(0))

    def end_task(self, model: Classifier, memory: Sums, task: Task) -> tuple[PyTree, Any]:
        """Make a head of the means."""
        mean = memory.feature / jnp.maximum(memory.count, 1)[:, None]
        head = nearest_mean(mean, self.metric)
        where = lambda model: (model.head.kernel, model.head.bias)
        return eqx.tree_at(where, model, head), memory


def nearest_mean(
    mean: Float32[Array, "classes dim"], metric: Literal["cosine", "euclidean"]
) -> tuple[Float[Array, "dim classes"], Float[Array, " classes"]]:
    """Kernel and bias of the linear head that prefers the nearest mean."""
    if metric == "cosine":
        return l2_normalize(mean).T, jnp.zeros(len(mean))
    return mean.T, -0.5 * jnp.square(mean).sum(1)
