"""`promptax weights convert | fetch | inspect | list`: pre-trained weights of several libraries."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.data.table import table
from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.nn import ResNetWeights, Weights, read_backbone, read_weights, write_npz
from promptax.nn.weights import BUNDLED, CATALOGUE, STATISTICS, Metadata
from promptax.nn.weights.cache import find_cached, weights_dir
from promptax.nn.weights.catalogue import Pretrained, entry_of
from promptax.nn.weights.fetch import fetch_weights


@dataclass(frozen=True)
class Convert:
    """Convert weights of a ViT to a .npz file that holds all facts about them.

    Facts that you give as flags take precedence over those in a `config.json` and
    `preprocessor_config.json` beside the file, and these over the defaults of the family and of the
    naming scheme.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A .safetensors or PyTorch file with the names of timm, Hugging Face transformers or OpenCLIP,
    the index of several, a .npz file, or a tag that has been fetched."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The .npz file to write."""
    metadata: tyro.conf.OmitArgPrefixes[Metadata] = Metadata()
    overwrite: bool = False
    """Replace the file if it exists."""

    def __post_init__(self):
        if self.out.suffix != ".npz":
            raise UserError(f"'{self.out}' should be the name of a .npz file.")
        if self.out.exists() and not self.overwrite:
            raise UserError(f"'{self.out}' exists: choose another name, or give --overwrite.")

    def __call__(self) -> None:
        """Read the weights, check them, write them, and print what was written."""
        weights = read_weights(self.source, self.metadata)
        # Building checks every leaf.
        weights.build()
        origin = Metadata(source=f"{weights.name} (sha256 {weights.sha256})")
        converted = dataclasses.replace(weights, metadata=weights.metadata.filled_from(origin))
        write_npz(self.out, converted)
        print("\n".join(_describe(str(self.out), read_weights(self.out), weights.dropped)))


@dataclass(frozen=True)
class Fetch:
    """Download weights from where their owners publish them.

    A download that was stopped continues where it ended. Afterwards `--weights TAG` takes the
    file. The folder of weights is PROMPTAX_WEIGHTS, or one in the user's cache; a copy in Hugging
    Face's cache (HF_HOME) is used as it is. HF_ENDPOINT names a mirror, HF_TOKEN a token of the
    hub, HTTP_PROXY and HTTPS_PROXY a proxy.
    """

    tag: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TAG")]
    """A tag of `promptax weights list`, such as vit_base_patch16_224.augreg_in21k."""
    offline: bool = False
    """Do not use the network: check a file that is there, or say where to put it."""

    def __call__(self) -> None:
        """Download the weights, and print where they are and how to train with them."""
        entry = entry_of(self.tag)
        source = entry.repository or entry.url
        print(f"{self.tag}: {entry.trained_on}. Licence: {entry.licence} ({source}).", flush=True)
        fetched = fetch_weights(self.tag, offline=self.offline)
        print(f"file           {fetched.path}")
        print(f"sha256         {fetched.sha256}")
        print(
            f"train with     --weights {self.tag} --images.size {entry.image} "
            f"--images.normalisation {entry.normalisation}"
        )


@dataclass(frozen=True)
class Inspect:
    """Describe a file of weights, and show which flags of `promptax train` suit it."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|TAG")]
    """A .npz, .safetensors or PyTorch file, a tag that has been fetched, or weights that come with
    the package."""
    metadata: tyro.conf.OmitArgPrefixes[Metadata] = Metadata()

    def __call__(self) -> None:
        """Read the weights, check them, and print a description."""
        weights = read_backbone(self.file, self.metadata)
        # Building checks every leaf.
        weights.build()
        if isinstance(weights, ResNetWeights):
            lines = _describe_resnet(self.file, weights)
        else:
            lines = _describe(self.file, weights, weights.dropped)
        print("\n".join(lines))


@dataclass(frozen=True)
class List:
    """List the weights that come with the package and those that `--weights TAG` knows.

    The column "state" shows which ones are on this machine.
    """

    def __call__(self) -> None:
        """Print a line for each checkpoint."""
        for name, (_, metadata) in BUNDLED.items():
            print(
                f"{name}: comes with the package, {metadata.licence}, "
                f"{metadata.normalisation} images"
            )
        print(f"\nweights folder: {weights_dir()}\n")
        head = ("tag", "state", "parameters", "dim", "depth", "image", "normalisation")
        print(
            table(
                [
                    (*head, "trained on", "licence", "used by"),
                    *(_row(entry) for entry in CATALOGUE.values()),
                ]
            )
        )
        print(
            "\n`promptax weights fetch TAG` downloads the weights of a tag. `promptax weights "
            "inspect FILE`\ndescribes a file of your own."
        )


COMMANDS = Convert | Fetch | Inspect | List
"""The commands of `promptax weights`."""


def run(argv: Sequence[str]) -> None:
    """Parse the command line and run the command."""
    parse(COMMANDS, argv, prog="promptax weights")()


def _row(entry: Pretrained) -> tuple[str, ...]:
    state = "-" if find_cached(entry) is None else "here"
    return (
        entry.tag,
        state,
        f"{entry.parameters:.0f} M",
        str(entry.dim),
        str(entry.depth),
        str(entry.image),
        entry.normalisation,
        entry.trained_on,
        entry.licence,
        entry.used_by,
    )


def _describe(file: str, weights: Weights, dropped: Sequence[str]) -> list[str]:
    """The lines about a ViT; `dropped` are arrays of the file that the ViT does not use."""
    config = weights.config()
    metadata = weights.metadata
    sizes = []
    options = []
    for field in dataclasses.fields(config):
        # The fields without a default are the sizes of the ViT.
        part = sizes if field.default is dataclasses.MISSING else options
        part.append(f"{field.name} {getattr(config, field.name)}")
    return [
        f"file           {file}",
        f"sha256         {weights.sha256}",
        f"family         {metadata.family or 'not known: say it with --family'}",
        f"source         {metadata.source or 'not known'}",
        f"licence        {metadata.licence or 'not known'}",
        f"shape          {', '.join(sizes)}",
        f"model          {', '.join(options)}",
        f"parameters     {sum(leaf.size for leaf in weights.leaves.values()):,}",
        f"normalisation  {_normalisation(weights)}",
        f"dropped        {', '.join(dropped) or 'nothing'}",
        f"train with     --weights {file} {_flags(weights)}",
    ]


def _describe_resnet(file: str, weights: ResNetWeights) -> list[str]:
    config = weights.config()
    return [
        f"file           {file}",
        f"sha256         {weights.sha256}",
        "family         resnet",
        f"shape          {', '.join(f'{key} {value}' for key, value in vars(config).items())}",
        f"parameters     {sum(leaf.size for leaf in weights.leaves.values()):,}",
        f"dropped        {', '.join(weights.dropped) or 'nothing'}",
        f"train with     --weights {file} --images.size {config.image} "
        "--images.normalisation imagenet (as timm and torchvision train them)",
    ]


def _normalisation(weights: Weights) -> str:
    if weights.normalisation is None:
        return "not known: say it with --normalisation"
    mean, std = STATISTICS[weights.normalisation]
    return f"{weights.normalisation}: (pixel / 255 - {mean}) / {std}"


def _flags(weights: Weights) -> str:
    size = f"--images.size {weights.config().image}"
    if weights.normalisation is None:
        return f"{size} (and a normalisation near its own)"
    return f"{size} --images.normalisation {weights.normalisation}"
