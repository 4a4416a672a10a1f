"""Streams, backbones and optimizers that are Python objects rather than settings.

Settings can be written into a run's `config.json`, and loaded again in another process. An object
cannot. A run of objects therefore keeps its learner in a file, and goes on only where the objects
are given again.
"""

from dataclasses import dataclass
from typing import Any

from promptax import nn
from promptax.core.settings import Recipe
from promptax.data.stream import TaskStream
from promptax.runs.inputs import Backbone, Data, Found
from promptax.runs.provenance import digest
from promptax.training.optimizer import Optax

_KEPT_OF_OPTAX = ("clip_norm", "reset", "skip_nonfinite")
"""The settings that still have an effect with a transformation of Optax."""


@dataclass(frozen=True, kw_only=True)
class GivenData(Data):
    """A stream that was made in Python, in the place of settings that load one."""

    given: TaskStream

    @classmethod
    def of(cls, stream: TaskStream) -> "GivenData":
        """A stand-in for the settings of a stream, under its name."""
        return cls(stream=stream.name, given=stream)

    def load(self, seed: int = 0) -> TaskStream:
        """Return the stream that was given, whatever the seed: its order of classes is fixed."""
        return self.given


@dataclass(frozen=True, kw_only=True)
class GivenBackbone(Backbone):
    """A backbone that was made in Python, in the place of settings that load one."""

    given: nn.AbstractBackbone

    @classmethod
    def of(cls, backbone: nn.AbstractBackbone) -> "GivenBackbone":
        """A stand-in for the settings of a backbone, under the name of its class."""
        return cls(weights=type(backbone).__name__, given=backbone)

    def load(
        self, image: int, found: Found | None = None
    ) -> tuple[nn.AbstractBackbone, dict[str, Any]]:
        """The backbone itself, and the digest of its arrays."""
        return self.given, {"name": self.weights, "sha256": digest(self.given)}


def given_parts(data: Data, backbone: Backbone, recipe: Recipe) -> list[str]:
    """Names of what was given as an object, so that no config describes it."""
    parts = {
        "stream": isinstance(data, GivenData),
        "backbone": isinstance(backbone, GivenBackbone),
        "optimizer": isinstance(recipe.optimizer, Optax),
    }
    return [name for name, is_given in parts.items() if is_given]


def without_unused(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer of Optax: the rate of Adam, say, is not among them."""
    return {"name": "optax", **{name: optimizer[name] for name in _KEPT_OF_OPTAX}}
