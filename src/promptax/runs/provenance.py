"""Where a result comes from: the program that computed it, and the machine it ran on."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from promptax.core.distributed import to_host

PACKAGE = Path(__file__).parents[1]
"""The folder of the whole package, not only of the runs in it."""
LIBRARIES = ("promptax", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "numpy")
"""The libraries whose versions a result records."""
_COMMIT_SHOWN = 10  # characters
_DIGEST_SHOWN = 8
_GIT_TIMEOUT = 20  # seconds


def versions() -> dict[str, str]:
    """The installed versions of the libraries that the numbers of a run depend on."""
    return {name: version(name) for name in LIBRARIES}


@cache
def source() -> dict[str, Any]:
    """Identify the program: version, digest of the Python files of the package, and commit.

    The commit, and whether files of the package have changed since (`dirty`), are None unless the
    package runs from a checkout of its repository.
    """
    files = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        files.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return {"version": version("promptax"), "sha256": files.hexdigest(), **_checkout()}


def describe_source(source: dict[str, Any]) -> str:
    """A short text for what `source` returns."""
    commit = source.get("commit")
    changed = ", changed since" if source.get("dirty") else ""
    checkout = f"commit {commit[:_COMMIT_SHOWN]}{changed}, " if commit else ""
    files = str(source.get("sha256"))[:_DIGEST_SHOWN]
    return f"{source.get('version')} ({checkout}files {files})"


def machine() -> dict[str, Any]:
    """Describe the machine: all that the bits of a result can depend on, beside versions."""
    devices = jax.devices()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def digest(tree: PyTree) -> str:
    """The SHA-256 digest of the shapes, dtypes and bits of a tree's arrays.

    The names of its fields do not count, so that renaming one changes no digest.
    """
    bits = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        array = to_host(leaf)
        bits.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return bits.hexdigest()


def _checkout() -> dict[str, Any]:
    # A virtual environment can lie in the checkout of another project, which does not track this
    # file.
    if _git("ls-files", "--error-unmatch", "runs/provenance.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": _git("status", "--porcelain", ".") != ""}


def _git(*words: str) -> str | None:
    """The output of a git command in the package's folder; None if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
