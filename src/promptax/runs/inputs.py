"""What a run reads: images and pre-trained weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr
import tyro

from promptax import data, nn
from promptax.data.benchmark import BENCHMARKS, Benchmark, Kind
from promptax.core.errors import UserError, unknown


@dataclass(frozen=True)
class Data:
    """Which images come in which task."""

    stream: str = "split-fashion-mnist"
    """A benchmark by name, or a set that `promptax data prepare` made; see `promptax data list`."""
    train: Path | None = None
    """Your own training data: a .npz file with `images` (uint8) and `labels`."""
    test: Path | None = None
    """Your own test data, in the same form."""
    kind: Kind | None = None
    """What tasks are: new classes, new domains, or classes that fade in and out (`gaussian`)."""
    tasks: int | None = None
    """Number of tasks to cut the classes into (micro-tasks, if `gaussian`)."""
    task_sizes: tuple[int, ...] | None = None
    """Or the number of classes of each task."""
    class_order: tuple[int, ...] | None = None
    """Order in which classes come; ascending, if None."""
    shuffle_classes: bool = False
    """Draw the order of classes from the run's seed."""
    reverse: bool = False
    """The last task comes first."""
    per_class: int | None = None
    """Train on at most so many examples of each class, drawn at random; None: all."""
    first: int | None = None
    """Only so many tasks, for a quick trial; None: all."""
    validation: float | None = None
    """Measure on such a share of the training examples, left out of training, in place of the
    test set: for tuning."""
    dir: Annotated[Path | None, tyro.conf.arg(name="data-dir", prefix_name=False)] = None
    """Folder of downloaded and prepared sets; PROMPTAX_DATA or the user's cache, if None."""

    def load(self, seed: int = 0) -> data.TaskStream:
        """Build the stream. Raises `UserError` where it cannot be."""
        stream = self._whole(seed)
        if self.per_class is not None:
            stream = stream.per_class(self.per_class)
        if self.first is not None:
            stream = stream.first(self.first)
        return stream if self.validation is None else stream.validation(self.validation)

    def _whole(self, seed: int) -> data.TaskStream:
        if self.shuffle_classes and self.class_order is not None:
            raise UserError("choose one of a given class order and one drawn from the seed.")
        if (self.train is None) != (self.test is None):
            raise UserError("your own data needs both a training file and a test file.")
        if self.train is not None and self.test is not None:
            own, name = data.own_set(self.train, self.test), self.train.stem
            return self._asked(Benchmark((name,)), seed).stream(name, lambda _: own)
        return self._asked(self._named(), seed).stream(self.stream, self._read)

    def _named(self) -> Benchmark:
        known = (*BENCHMARKS, *data.prepared_names(self.dir))
        if self.stream not in known:
            raise unknown("stream", self.stream, known)
        return BENCHMARKS.get(self.stream, Benchmark((self.stream,)))

    def _asked(self, benchmark: Benchmark, seed: int) -> Benchmark:
        """With the settings that were given in place of the benchmark's own."""
        asked: dict[str, Any] = {
            "kind": self.kind,
            "tasks": self.tasks,
            "task_sizes": self.task_sizes,
            "order": seed if self.shuffle_classes else self.class_order,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        benchmark = replace(benchmark, **given, reverse=self.reverse)
        uncut = benchmark.tasks is None and benchmark.task_sizes is None
        if benchmark.kind == "classes" and uncut:
            raise UserError(
                f"say into how many tasks the classes of '{benchmark.sets[0]}' are cut: "
                "--data.tasks N."
            )
        return benchmark

    def _read(self, name: str) -> data.Dataset:
        return data.box_set(name) if name in data.BOX_SETS else data.open_dataset(name, self.dir)


@dataclass(frozen=True)
class Backbone:
    """The pre-trained backbone."""

    weights: str = "glyph-vit"
    """A .npz or .safetensors file of a ViT or ResNet (see `promptax weights`), weights that come
    with the package, or `random`."""
    vit: Annotated[str | None, tyro.conf.arg(aliases=["--backbone"])] = None
    """Shape of a `random` backbone (such as vit-b/16 or resnet-18); others have the shape of
    their file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type that the backbone computes in; parameters and softmax stay in float32."""
    attention: Literal["auto", "plain", "cudnn"] = "auto"
    """Attention of a ViT: plain matrix products, or cuDNN's fused kernel (NVIDIA GPUs, bfloat16);
    auto: cuDNN wherever it can run."""
    blocks: Literal["auto", "scan", "unroll"] = "auto"
    """Loop over the blocks of a ViT (scan, compiles in half the time), or lay them out one after
    another (unroll); auto: unroll on a GPU, scan elsewhere."""
    remat: Literal["auto", "all", "projections", "nothing"] = "auto"
    """What the backward pass computes again rather than keeping it in memory: all of a block, all
    but the products with weights, or nothing. auto: on a GPU the first of nothing, projections and
    all that fits its memory, projections elsewhere. A ResNet knows all and nothing only."""

    def load(self, image: int) -> tuple[nn.AbstractBackbone, dict[str, Any]]:
        """Make the backbone.

        Args:
            image: side of the images that it is to take, in pixels.

        Returns:
            The backbone, and what a result records about its weights.

        Raises:
            UserError: the weights cannot be read, or the shape of random ones is not given.
        """
        if self.weights == "random":
            return self._random(image), {"name": f"random {self.vit}", "sha256": None}
        weights = nn.read_backbone(self.weights)
        if isinstance(weights, nn.ResNetWeights):
            backbone = weights.build(image, dtype=self.dtype, remat=self.remat == "all")
        else:
            backbone = weights.build(image, dtype=self.dtype, execution=self._execution)
        return backbone, weights.facts()

    @property
    def _execution(self) -> nn.Execution:
        return nn.Execution(attention=self.attention, blocks=self.blocks, remat=self.remat)

    def _random(self, image: int) -> nn.AbstractBackbone:
        if self.vit is None:
            raise UserError("random weights need the shape of a backbone, such as vit-b/16.")
        if self.vit in nn.RESNETS:
            config = nn.resnet_config(self.vit, image)
            remat = self.remat == "all"
            return nn.ResNet(config, key=jr.key(0), dtype=self.dtype, remat=remat)
        if self.vit in nn.SIZES:
            config = nn.vit_config(self.vit, image)
            return nn.ViT(config, key=jr.key(0), dtype=self.dtype, execution=self._execution)
        raise unknown("backbone", self.vit, (*nn.SIZES, *nn.RESNETS))
