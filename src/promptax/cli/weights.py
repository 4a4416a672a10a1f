"""`promptax weights convert | inspect | list`: pre-trained weights of several libraries."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptax.cli.parse import parse
from promptax.core.errors import UserError
from promptax.nn import ResNetWeights, read_backbone
from promptax.nn import weights as w
from promptax.nn.weights.catalogue import PUBLISHED


@dataclass(frozen=True)
class Convert:
    """Convert weights to a .npz file that `--weights` takes and that says what is known of them.

    What you say goes before what `config.json` and `preprocessor_config.json` beside the file
    say, and that before what is usual for the family and for the names of the leaves.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A .safetensors file with the names of timm or Hugging Face, its index, or a .npz file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The .npz file to write."""
    about: tyro.conf.OmitArgPrefixes[w.About] = w.About()
    overwrite: bool = False
    """Replace the file if it exists."""

    def __post_init__(self):
        if self.out.suffix != ".npz":
            raise UserError(f"'{self.out}' should be the name of a .npz file.")
        if self.out.exists() and not self.overwrite:
            raise UserError(f"'{self.out}' exists: choose another name, or give --overwrite.")

    def __call__(self) -> None:
        """Read, check, write, and print what came out."""
        weights = w.read_weights(self.source, self.about)
        weights.build()  # raises for whatever is wrong with it
        came = w.About(source=f"{weights.name} (sha256 {weights.sha256})")
        weights = dataclasses.replace(weights, about=weights.about.over(came))
        w.write_npz(self.out, weights)
        print("\n".join(_describe(str(self.out), w.read_weights(self.out), weights.dropped)))


@dataclass(frozen=True)
class Inspect:
    """Say what is in a file of weights, and which flags of `promptax train` suit it."""

    file: Annotated[str, tyro.conf.Positional]
    """A .npz or .safetensors file, or weights that come with the package."""
    about: tyro.conf.OmitArgPrefixes[w.About] = w.About()

    def __call__(self) -> None:
        """Read, check and print."""
        weights = read_backbone(self.file, self.about)
        weights.build()  # raises for whatever is wrong with it
        if isinstance(weights, ResNetWeights):
            print("\n".join(_describe_resnet(self.file, weights)))
            return
        print("\n".join(_describe(self.file, weights, weights.dropped)))


@dataclass(frozen=True)
class List:
    """List the weights that come with the package, and public ones with their addresses."""

    def __call__(self) -> None:
        """Print two tables."""
        for name, (_, about) in w.BOX.items():
            print(f"{name}: comes with the package, {about.licence}, {about.normalisation} images")
        print("\n| checkpoint | family | images | licence | from |\n|---|---|---|---|---|")
        for name, family, licence, url in PUBLISHED:
            scaled = w.FAMILIES[family].normalisation
            print(f"| {name} | {family} | {scaled} | {licence} | {url} |")
        print(
            "\npromptax downloads no weights. Put the file, and the config.json of its page, into a"
        )
        print("folder, and see `promptax weights convert --help`.")


def run(argv: Sequence[str]) -> None:
    """Parse, and do what is asked for."""
    parse(Convert | Inspect | List, argv, prog="promptax weights")()


def _describe(file: str, weights: w.Weights, dropped: Sequence[str]) -> list[str]:
    config, about = weights.config(), weights.about
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    shape = vars(config).items()
    sizes = ", ".join(f"{k} {v}" for k, v in shape if usual[k] is dataclasses.MISSING)
    others = ", ".join(f"{k} {v}" for k, v in shape if usual[k] is not dataclasses.MISSING)
    return [
        f"file           {file}",
        f"sha256         {weights.sha256}",
        f"family         {about.family or 'not known: say it with --family'}",
        f"source         {about.source or 'not known'}",
        f"licence        {about.licence or 'not known'}",
        f"shape          {sizes}",
        f"model          {others}",
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
        "--images.value-range imagenet (as timm and torchvision train them)",
    ]


def _normalisation(weights: w.Weights) -> str:
    if weights.normalisation is None:
        return "not known: say it with --normalisation"
    mean, std = w.STATISTICS[weights.normalisation]
    return f"{weights.normalisation}: (pixel / 255 - {mean}) / {std}"


def _flags(weights: w.Weights) -> str:
    size = f"--images.size {weights.config().image}"
    if weights.normalisation is None:
        return f"{size} (and a value range nearest to its normalisation)"
    return f"{size} --images.value-range {weights.normalisation}"
