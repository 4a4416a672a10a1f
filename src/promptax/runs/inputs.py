"""The inputs of a run: the stream of tasks and the pre-trained backbone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr
import tyro

from promptax import data, nn
from promptax.core.errors import UserError, unknown
from promptax.core.fields import check_fields
from promptax.data.benchmark import BENCHMARKS, Benchmark, Kind
from promptax.data.class_order import Shuffling
from promptax.runs.preprocessing import pretraining_of

_OURS: Shuffling = "promptax"


@dataclass(frozen=True)
class Data:
    """The images to train and test on, and how they are divided into tasks."""

    stream: str = "split-fashion-mnist"
    """Name of a benchmark, or of a set prepared by `promptax data prepare`; `promptax data list`
    shows them."""
    train: Path | None = None
    """Your own training data: a .npz file with `images` (uint8) and `labels`."""
    test: Path | None = None
    """Your own test data, in the same form."""
    sets: tuple[str, ...] | None = None
    """Several prepared sets in place of a stream, by name or folder: one after another, each a task
    with classes of its own; or, with the kind `domains`, the domains of the same classes."""
    kind: Kind | None = None
    """Whether tasks are new classes, new domains, both at once, other data sets, or the micro-tasks
    of classes that fade in and out (`gaussian`)."""
    domains: tuple[str, ...] | None = None
    """Names of the domains to train on, in their order; all, if None."""
    tasks: int | None = None
    """Number of tasks into which the classes are divided (of micro-tasks, if `gaussian`)."""
    task_sizes: tuple[int, ...] | None = None
    """Number of classes of each task, in place of the number of tasks."""
    base_classes: int | None = None
    """Number of classes of the first task, the base session; the other classes are divided evenly
    among the other tasks."""
    shots: int | None = None
    """Few-shot learning: train on only this many examples of each class in all tasks after the
    first, drawn from the seed of the order of classes or else from the run's."""
    class_order: tuple[int, ...] | None = None
    """Order in which classes come; ascending, if None."""
    shuffle_classes: bool = False
    """Draw the order of classes from a seed."""
    shuffle_like: Shuffling = "promptax"
    """Whose code draws the order of classes from a seed. promptax: this package; pilot:
    LAMDA-PILOT, PyCIL and mammoth; coda: CODA-Prompt."""
    class_seed: int | None = None
    """Seed of the order of classes, and of the draw of shots; the run's seed, if None. The usual
    one of LAMDA-PILOT is 1993."""
    reverse: bool = False
    """Train on the last task first."""
    per_class: int | None = None
    """Train on at most this many examples of each class, drawn at random; all of them, if None."""
    first: int | None = None
    """Train on only the first tasks, this many, for a quick trial; all of them, if None."""
    validation: float | None = None
    """Leave this share of the training examples out of training, and measure on them instead of the
    test set: for tuning."""
    joint: bool = False
    """Train on all tasks at once: the upper bound of a continual learner."""
    dir: Annotated[Path | None, tyro.conf.arg(name="data-dir", prefix_name=False)] = None
    """Folder of downloaded and prepared sets; PROMPTAX_DATA or the user's cache, if None."""

    def __post_init__(self):
        check_fields(self)
        if self.sets is not None:
            # A run is opened in other folders than the one that it was started in.
            object.__setattr__(self, "sets", tuple(map(_absolute, self.sets)))

    @property
    def name(self) -> str:
        """The name of the data in results and run folders.

        It is that of the stream, of the sets together, or of the user's own training file.
        """
        if self.train is not None:
            return self.train.stem
        if self.sets is not None:
            return " + ".join(Path(member).name for member in self.sets)
        return self.stream

    def load(self, seed: int = 0) -> data.TaskStream:
        """Build the stream.

        Raises `UserError` for a stream that is unknown, not prepared or damaged, and for settings
        that contradict one another or do not fit it.
        """
        stream = self._whole_stream(seed)
        if self.shots is not None:
            stream = stream.few_shot(self.shots, seed=self._class_seed(seed))
        if self.per_class is not None:
            stream = stream.per_class(self.per_class)
        if self.first is not None:
            stream = stream.first(self.first)
        if self.validation is not None:
            stream = stream.validation(self.validation)
        # Last, because the others act on single tasks: joint training then has the same examples
        # as training on one task after another, and is measured on the same ones.
        return stream.joint() if self.joint else stream

    def located(self, run: Path, data_dir: Path | None = None) -> "Data":
        """The same data where they are now, for a run whose folder or data have moved.

        Args:
            run: The run folder. A file of the user's own, or the folder of a set, that is no longer
                in its place may be in this folder, or beside it.
            data_dir: The folder of prepared sets, if not the one of the settings.
        """
        moved: dict[str, Any] = {
            name: _found_near(path, run)
            for name, path in (("train", self.train), ("test", self.test))
            if path is not None
        }
        if self.sets is not None:
            moved["sets"] = tuple(
                str(_found_near(Path(member), run)) if _is_folder(member) else member
                for member in self.sets
            )
        return replace(self, **moved, dir=data_dir or self.dir)

    def _whole_stream(self, seed: int) -> data.TaskStream:
        """The stream with all its tasks and examples."""
        self._check()
        if self.train is not None and self.test is not None:
            own = data.own_set(self.train, self.test)
            benchmark = self._adjusted(Benchmark((self.name,)), seed)
            return benchmark.stream(self.name, lambda _: own)
        if self.sets is not None:
            benchmark = self._adjusted(Benchmark(self.sets, "sets"), seed)
            return benchmark.stream(self.name, self._read)
        known = (*BENCHMARKS, *data.prepared_names(self.dir))
        if self.stream not in known:
            raise unknown("stream", self.stream, known)
        benchmark = BENCHMARKS.get(self.stream, Benchmark((self.stream,)))
        return self._adjusted(benchmark, seed).stream(self.stream, self._read)

    def _check(self) -> None:
        """Raise `UserError` for settings that contradict one another."""
        if self.tasks is not None and self.task_sizes is not None:
            raise UserError("choose one of the number of tasks and the sizes of tasks.")
        if self.base_classes is not None and self.task_sizes is not None:
            raise UserError("choose one of the number of base classes and the sizes of tasks.")
        if self.shuffle_classes and self.class_order is not None:
            raise UserError("choose one of a given class order and one drawn from the seed.")
        draws_shots = self.class_seed is not None and self.shots is not None
        has_seed = self.class_seed is not None or self.shuffle_like != _OURS
        if has_seed and not self.shuffle_classes and not draws_shots:
            raise UserError(
                "--data.class-seed and --data.shuffle-like say how the order of classes is drawn: "
                "add --data.shuffle-classes."
            )
        if self.shots is not None and self.per_class is not None and self.per_class < self.shots:
            raise UserError(
                f"{self.shots} shots are more than the {self.per_class} examples that "
                "--data.per-class leaves of each class: choose one of them."
            )
        if (self.train is None) != (self.test is None):
            raise UserError("your own data needs both a training file and a test file.")
        if self.sets is not None:
            self._check_sets(self.sets)

    def _check_sets(self, sets: tuple[str, ...]) -> None:
        if self.train is not None:
            raise UserError("choose one of --data.sets and your own files.")
        if len(sets) < 2:
            raise UserError("--data.sets takes at least two sets: --data.stream takes one.")
        names = [Path(member).name for member in sets]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two of --data.sets are called '{name}': leave out or rename one.")
        if self.domains is not None:
            raise UserError(
                "--data.sets gives the domains in their order, so leave out --data.domains."
            )

    def _adjusted(self, benchmark: Benchmark, seed: int) -> Benchmark:
        """The benchmark with the given settings in place of its own."""
        if self.kind in ("domains", "classes-and-domains"):
            benchmark = replace(benchmark, tasks=None)  # as many as domains
        settings: dict[str, Any] = {
            "kind": self.kind,
            "domains": self.domains,
            "tasks": self.tasks,
            "task_sizes": self.task_sizes,
            "base_classes": self.base_classes,
            "order": self._class_order(seed),
        }
        given = {name: value for name, value in settings.items() if value is not None}
        benchmark = replace(benchmark, **given, reverse=self.reverse)
        if self.shots is not None and (benchmark.kind != "classes" or self.reverse):
            raise UserError(
                "--data.shots is for tasks of new classes after a base session: leave it out, or "
                "the kind and --data.reverse."
            )
        undivided = benchmark.tasks is None and benchmark.task_sizes is None
        if benchmark.kind == "classes" and undivided:
            raise UserError(
                f"say into how many tasks the classes of '{self.name}' are cut: --data.tasks N."
            )
        return benchmark

    def _class_order(self, seed: int) -> data.Shuffled | tuple[int, ...] | None:
        if not self.shuffle_classes:
            return self.class_order
        return data.Shuffled(self._class_seed(seed), like=self.shuffle_like)

    def _class_seed(self, seed: int) -> int:
        return seed if self.class_seed is None else self.class_seed

    def _read(self, name: str) -> data.Dataset:
        if _is_folder(name):
            return data.Dataset.open(Path(name))
        if name in data.BUNDLED_SETS:
            return data.bundled_set(name)
        return data.open_dataset(name, self.dir)


def _found_near(path: Path, run: Path) -> Path:
    """The path itself, or what has this name in the run folder or beside it."""
    places = (path, run / path.name, run.absolute().parent / path.name)
    return next((place for place in places if place.exists()), path)


def _is_folder(name: str) -> bool:
    """Whether a data set is given by its folder, such as `./birds`, and not by its name."""
    return Path(name).name != name


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if _is_folder(name) else name


@dataclass(frozen=True)
class Found:
    """A file of weights that was found again, and what is known about it besides its arrays."""

    path: Path
    metadata: nn.Metadata


@dataclass(frozen=True)
class Backbone:
    """The pre-trained backbone: a name, or a file of weights."""

    weights: str = "glyph-vit"
    """A tag of `promptax weights list` that has been fetched, a .npz or .safetensors file of a ViT
    or ResNet, weights that come with the package, or `random`."""
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
    """Activations that the backward pass computes again instead of keeping them: all of a block,
    all but the products with weights (projections), or nothing. auto: on a GPU, the first of
    nothing, projections and all whose activations fit into its memory; elsewhere, projections. A
    ResNet knows only all and nothing."""

    def __post_init__(self):
        check_fields(self)
        if self.vit is not None and self.weights != "random":
            raise UserError(
                f"--backbone {self.vit} is the shape of random weights, but --weights "
                f"{self.weights} has a shape of its own: leave one of them out, or give --weights "
                "random."
            )

    def load(
        self, image: int, found: Found | None = None
    ) -> tuple[nn.AbstractBackbone, dict[str, Any]]:
        """Make the backbone.

        Args:
            image: side of the images that it is to take, in pixels.
            found: where the weights are now, if not where `weights` says.

        Returns:
            The backbone, and what a result records about its weights: among others the
            `metadata` of a ViT, which can come from files beside it, and what is known of the
            `images` of pre-training.

        Raises:
            UserError: the weights cannot be read, or the shape of random ones is not given.
        """
        if self.weights == "random":
            return self._random(image), {"name": f"random {self.vit}", "sha256": None}
        if found is None:
            weights = nn.read_backbone(self.weights)
        else:
            weights = nn.read_backbone(found.path, found.metadata)
        if isinstance(weights, nn.ResNetWeights):
            self._check_resnet()
            backbone = weights.build(image, dtype=self.dtype, remat=self.remat == "all")
            return backbone, {**weights.facts(), "images": pretraining_of(weights)}
        backbone = weights.build(image, dtype=self.dtype, execution=self._execution)
        facts = {"metadata": weights.metadata.known(), "images": pretraining_of(weights)}
        return backbone, {**weights.facts(), **facts}

    def _check_resnet(self) -> None:
        """Raise `UserError` for settings that a ResNet does not have."""
        for_vit = {
            "attention": ("plain", "cudnn"),
            "blocks": ("scan", "unroll"),
            "remat": ("projections",),
        }
        for flag, values in for_vit.items():
            if getattr(self, flag) in values:
                raise UserError(
                    f"--{flag} {getattr(self, flag)} is for a ViT, but the backbone is a ResNet: "
                    "leave it out."
                )

    @property
    def _execution(self) -> nn.Execution:
        return nn.Execution(attention=self.attention, blocks=self.blocks, remat=self.remat)

    def _random(self, image: int) -> nn.AbstractBackbone:
        if self.vit is None:
            raise UserError("random weights need the shape of a backbone, such as vit-b/16.")
        if self.vit in nn.RESNETS:
            config = nn.resnet_config(self.vit, image)
            self._check_resnet()
            remat = self.remat == "all"
            return nn.ResNet(config, key=jr.key(0), dtype=self.dtype, remat=remat)
        if self.vit in nn.SIZES:
            config = nn.vit_config(self.vit, image)
            return nn.ViT(config, key=jr.key(0), dtype=self.dtype, execution=self._execution)
        raise unknown("backbone", self.vit, (*nn.SIZES, *nn.RESNETS))
