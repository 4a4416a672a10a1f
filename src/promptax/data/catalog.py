"""The data sets that promptax can fetch: where their authors publish them, and the licences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Checksum:
    """The digest that a downloaded file must have."""

    algorithm: Literal["md5", "sha256"]
    value: str
    """The digest in lower-case hexadecimal digits."""


@dataclass(frozen=True)
class File:
    """A file to fetch from the internet."""

    url: str
    checksum: Checksum | None = None
    """None if no published digest could be confirmed."""
    size: int | None = None
    """In bytes, possibly rounded by the source. It is used to check the disk, not the file."""
    token: str | None = field(default=None, repr=False)
    """The user's token for the server, if it wants one."""

    @property
    def name(self) -> str:
        """The file's name in the folder of downloads."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Entry:
    """A data set of the catalog."""

    title: str
    """Name with authors and year."""
    form: str
    """The name of its format in `promptax.data.formats.FORMATS`."""
    licence: str
    """The licence in a few words; the home page has the terms."""
    homepage: str
    """Page of the authors about the set."""
    files: tuple[File, ...] = ()
    """The files to fetch; () if the user has to get them."""
    by_hand: str = ""
    """How the user gets the files if they cannot be fetched; it continues a sentence that starts
    with the name of the set."""

    @property
    def size(self) -> int | None:
        """The number of bytes to fetch, as far as they are known; None if no size is."""
        return sum(file.size or 0 for file in self.files) or None


def _md5(url: str, value: str, size: int | None = None) -> File:
    return File(url, Checksum("md5", value), size)


def _sha256(url: str, value: str, size: int | None = None) -> File:
    return File(url, Checksum("sha256", value), size)


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_OSSCI = "https://ossci-datasets.s3.amazonaws.com/mnist"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_STANFORD = "http://ufldl.stanford.edu/housenumbers"
_BOSTON = "http://csr.bu.edu/ftp/visda/2019/multi-source"

# The cleaned version. Sizes are rounded as on the page, and no digests are published.
_DOMAINNET = {
    "groundtruth/clipart": 1_300_000_000,
    "infograph": 4_000_000_000,
    "groundtruth/painting": 3_700_000_000,
    "quickdraw": 439_000_000,
    "real": 5_600_000_000,
    "sketch": 2_500_000_000,
}

CATALOG: Mapping[str, Entry] = {
    # Digests: the home page, and torchvision's cifar.py.
    "cifar10": Entry(
        "CIFAR-10 (Krizhevsky, 2009)",
        "cifar10",
        "none stated; cite the report",
        f"{_TORONTO}/cifar.html",
        (
            _md5(
                f"{_TORONTO}/cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
                170_498_071,
            ),
        ),
    ),
    "cifar100": Entry(
        "CIFAR-100 (Krizhevsky, 2009)",
        "cifar100",
        "none stated; cite the report",
        f"{_TORONTO}/cifar.html",
        (
            _md5(
                f"{_TORONTO}/cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
                169_001_437,
            ),
        ),
    ),
    # The original site no longer serves the files; this is torchvision's mirror. Digests: its
    # mnist.py. Sizes: tensorflow_datasets' url_checksums/mnist.txt.
    "mnist": Entry(
        "MNIST (LeCun et al., 1998)",
        "idx",
        "CC BY-SA 3.0",
        "http://yann.lecun.com/exdb/mnist/",
        (
            _md5(
                f"{_OSSCI}/train-images-idx3-ubyte.gz",
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                9_912_422,
            ),
            _md5(
                f"{_OSSCI}/train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881
            ),
            _md5(
                f"{_OSSCI}/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877
            ),
            _md5(f"{_OSSCI}/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        ),
    ),
    # Digests: torchvision's mnist.py. Sizes: tensorflow_datasets' url_checksums/fashion_mnist.txt.
    "fashion-mnist": Entry(
        "Fashion-MNIST (Xiao et al., 2017)",
        "idx",
        "MIT",
        "https://github.com/zalandoresearch/fashion-mnist",
        (
            _md5(
                f"{_ZALANDO}/train-images-idx3-ubyte.gz",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                26_421_880,
            ),
            _md5(
                f"{_ZALANDO}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515
            ),
            _md5(
                f"{_ZALANDO}/t10k-images-idx3-ubyte.gz",
                "bef4ecab320f06d8554ea6380940ec79",
                4_422_102,
            ),
            _md5(
                f"{_ZALANDO}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148
            ),
        ),
    ),
    # tensorflow_datasets' url_checksums/svhn_cropped.txt.
    "svhn": Entry(
        "SVHN, cropped digits (Netzer et al., 2011)",
        "svhn",
        "non-commercial use",
        f"{_STANFORD}/",
        (
            _sha256(
                f"{_STANFORD}/train_32x32.mat",
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                182_040_794,
            ),
            _sha256(
                f"{_STANFORD}/test_32x32.mat",
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                64_275_384,
            ),
        ),
    ),
    # Two independent torchvision-style loaders on GitHub agree on the digest, the Udacity deep
    # learning course and many others on the size.
    "notmnist": Entry(
        "notMNIST, small (Bulatov, 2011)",
        "notmnist",
        "none stated",
        "http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
        (
            _md5(
                "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz",
                "c9890a473a9769fda4bdf314aaf500dd",
                8_458_043,
            ),
        ),
    ),
    # The digest of Avalanche, which CORe50's authors maintain (core50_data.py).
    "core50": Entry(
        "CORe50, 128x128 (Lomonaco and Maltoni, 2017)",
        "core50",
        "CC BY 4.0",
        "https://vlomonaco.github.io/core50/",
        (
            _md5(
                "http://bias.csr.unibo.it/maltoni/download/core50/core50_128x128.zip",
                "745f3373fed08d69343f1058ee559e13",
            ),
        ),
    ),
    # tensorflow_datasets' datasets/imagenet_r/checksums.tsv.
    "imagenet-r": Entry(
        "ImageNet-R (Hendrycks et al., 2021)",
        "imagenet-r",
        "MIT; images under their own",
        "https://github.com/hendrycks/imagenet-r",
        (
            _sha256(
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
                2_191_079_936,
            ),
        ),
    ),
    "domainnet": Entry(
        "DomainNet, cleaned (Peng et al., 2019)",
        "domainnet",
        "fair use, non-commercial research",
        "http://ai.bu.edu/M3SDA/",
        tuple(
            file
            for path, size in _DOMAINNET.items()
            for file in (
                File(f"{_BOSTON}/{path}.zip", size=size),
                *(
                    File(f"{_BOSTON}/domainnet/txt/{path.rpartition('/')[2]}_{part}.txt")
                    for part in ("train", "test")
                ),
            )
        ),
    ),
    "imagenet": Entry(
        "ImageNet, ILSVRC 2012 (Russakovsky et al., 2015)",
        "folder",
        "terms of access, non-commercial research",
        "https://image-net.org/download.php",
        by_hand="needs an account at https://image-net.org: sign up, take ILSVRC2012 and extract "
        "it into a folder with `train` and `val`, a folder for each class in both",
    ),
}
"""By their names on the command line."""
