"""The formats in which data sets are published: a file for each."""

from collections.abc import Callable, Mapping
from functools import partial

from promptax.data.formats.array_record import ArrayRecords as ArrayRecords
from promptax.data.formats.arrays import Arrays as Arrays
from promptax.data.formats.cars import Cars as Cars
from promptax.data.formats.cifar import Cifar as Cifar
from promptax.data.formats.core50 import Core50 as Core50
from promptax.data.formats.cub import Cub as Cub
from promptax.data.formats.domainnet import DomainNet as DomainNet
from promptax.data.formats.folder import ImageFolder as ImageFolder
from promptax.data.formats.format import AbstractFormat as AbstractFormat
from promptax.data.formats.huggingface import HuggingFace as HuggingFace
from promptax.data.formats.idx import Idx as Idx
from promptax.data.formats.imagenet_r import ImageNetR as ImageNetR
from promptax.data.formats.notmnist import NotMnist as NotMnist
from promptax.data.formats.svhn import Svhn as Svhn
from promptax.data.formats.table import LabelTable as LabelTable

FORMATS: Mapping[str, Callable[[], AbstractFormat]] = {
    "cifar10": Cifar,
    "cifar100": partial(Cifar, 100),
    "idx": Idx,
    "svhn": Svhn,
    "notmnist": NotMnist,
    "core50": Core50,
    "imagenet-r": ImageNetR,
    "domainnet": DomainNet,
    "cub": Cub,
    "cars": Cars,
    "folder": ImageFolder,
    "csv": LabelTable,
    "arrays": Arrays,
    "array-record": ArrayRecords,
    "huggingface": HuggingFace,
}
"""All formats, by their names on the command line."""
