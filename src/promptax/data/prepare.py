"""Decode the images of a set once into memory-mapped files, which `data/dataset.py` opens.

The work is done in `<folder>.partial`, which is renamed when everything is there. Each image has
its position in the file from the start, and the progress is noted every `STRIDE` images. So work
that was stopped goes on from the last note, and ends with the same bytes.
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from promptax.core.errors import UserError
from promptax.core.files import read_json, sha256_of, sync, write_json
from promptax.core.settings import Interpolation
from promptax.data.dataset import ARRAYS, PARTS, VERSION, Dataset, digest, read_meta
from promptax.data.formats.format import AbstractFormat, Listed, Listing, Stored
from promptax.data.image import DamagedImage, decode, resize
from promptax.data.plan import Plan, check_same, make_plan
from promptax.data.storage import (
    ImageFile,
    check_space,
    disk,
    keep,
    locked,
)

STRIDE = 512
"""Images between two notes of the progress."""
LARGEST_SIDE = 4096
"""Largest side, in pixels, that images can be resized to."""
MOST_THREADS = 64
"""Threads that decode, where a machine has more cores."""
ITEMS_PER_THREAD = 8
"""Images that are read before they are decoded, for each thread that decodes."""
READ_AHEAD = 2**28
"""Bytes that these images and their pixels take; a larger image waits alone."""

Damaged = Literal["raise", "skip"]
Skipped = list[tuple[int, str]]
"""Positions of images that could not be decoded, with the reasons."""


def prepare(
    form: AbstractFormat,
    path: Path,
    folder: Path,
    *,
    size: int | None = None,
    keep_aspect: bool = False,
    interpolation: Interpolation = "bilinear",
    damaged: Damaged = "raise",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Decode a published set into a folder, or go on where this was stopped.

    Args:
        form: The format that the set is published in.
        path: The archive or folder of the set, as the format describes it.
        folder: The folder of the prepared set. It is returned as it is if it holds the same set
            already.
        size: The side, in pixels, of the square that images are resized to; None: `form.size`.
        keep_aspect: Whether the shorter side is resized to `size` and the centre cut out, instead
            of stretching images to the square.
        interpolation: Of the resizing, which is always antialiased.
        damaged: Whether an image that cannot be decoded raises an error, or is left out and listed
            in `meta.json`.
        overwrite: Whether the set is prepared again if `folder` is there, and takes its place once
            it is complete.
        on_progress: Called now and then with the number of images done and of all images.

    Returns:
        The prepared set.

    Raises:
        UserError: The published set is damaged or incomplete, `folder` holds another set, another
            process is preparing it, or the disk is full.
    """
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"size is {size}; expected 1 to {LARGEST_SIDE} pixels.")
    with disk(folder), locked(folder):
        listing = form.list(path)
        _check_parts(listing)
        plan = make_plan(
            form,
            listing,
            size or form.size,
            keep_aspect=keep_aspect,
            interpolation=interpolation,
        )
        if folder.exists() and not overwrite:
            check_same(read_meta(folder).get("made_from"), plan, folder, path)
            return Dataset.open(folder)
        work = _Work(folder.with_name(f"{folder.name}.partial"), listing, plan, damaged)
        work.begin(path, overwrite=overwrite)
        if not work.meta.is_file():
            work.run(on_progress)
        work.end(folder)
    return Dataset.open(folder)


@dataclass(frozen=True)
class _Work:
    """The preparation of a set, in the folder `partial`."""

    partial: Path
    listing: Listing
    plan: Plan
    """Everything that the prepared set depends on, by `make_plan`."""
    damaged: Damaged

    @property
    def meta(self) -> Path:
        """The file that is written last: if it is there, everything is."""
        return self.partial / "meta.json"

    def begin(self, source: Path, *, overwrite: bool) -> None:
        """Make the folder, or go on with one that was begun with the same plan.

        Args:
            source: What the set is prepared from, for the message.
            overwrite: Whether a folder that was begun with another plan is removed.

        Raises:
            UserError: The folder was begun with another plan.
        """
        note = self.partial / "plan.json"
        noted = None
        if self.meta.is_file():
            noted = read_json(self.meta)["made_from"]
        elif note.is_file():
            noted = read_json(note)
        if noted is not None and not overwrite:
            check_same(noted, self.plan, self.partial, source)
        elif noted != self.plan:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
            write_json(note, self.plan)

    def end(self, folder: Path) -> None:
        """Remove the notes, and give the folder its final name."""
        for note in ("plan.json", *(f"{name}.progress.json" for name in PARTS)):
            (self.partial / note).unlink(missing_ok=True)
        # Everything must be on the disk before the name says that it is complete.
        for path in (*self.partial.iterdir(), self.partial):
            sync(path)
        if folder.exists():  # which is to be overwritten
            shutil.rmtree(folder)
        self.partial.rename(folder)

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        """Decode the images that are not decoded yet, and write all files of the set."""
        parts: dict[str, Listed] = {name: getattr(self.listing, name) for name in PARTS}
        total = sum(len(part.names) for part in parts.values())
        shape = self._first_shape(parts["train"])
        check_space(self.partial, total * int(np.prod(shape)))
        skipped = {}
        before = 0
        for name, part in parts.items():
            report = lambda done, before=before: on_progress(before + done, total)
            skipped[name] = self._write_images(name, part, shape, report)
            before += len(part.names)
        for name, part in parts.items():
            self._write_tables(name, part, skipped[name])
        self._write_meta(shape, skipped)

    def _first_shape(self, part: Listed) -> tuple[int, int, int]:
        """The shape of the first image that can be decoded, which all others must have too."""
        order = part.images.order(len(part.names))
        for image in part.images.read(order):
            pixels = self._decode(image)
            if not isinstance(pixels, DamagedImage):
                height, width, channels = pixels.shape
                return height, width, channels
        raise UserError(f"'{self.listing.files[0]}' holds no training image that can be decoded.")

    def _decode(self, image: Stored) -> UInt8[np.ndarray, "tall wide channels"] | DamagedImage:
        side = self.plan["size"]
        fit = {
            "keep_aspect": self.plan.get("keep_aspect", False),
            "interpolation": self.plan.get("interpolation", "bilinear"),
        }
        try:
            if isinstance(image, bytes):
                return decode(image, side, **fit)
            return resize(image, side, **fit)
        except DamagedImage as error:
            return error

    def _write_images(
        self,
        name: str,
        part: Listed,
        shape: tuple[int, int, int],
        report: Callable[[int], None],
    ) -> Skipped:
        """Decode the images of a part, and write each to its position.

        Args:
            name: Name of the part.
            part: Its images.
            shape: Height, width and channels of each image.
            report: Called now and then with the number of images done.

        Returns:
            The images that could not be decoded. Their positions in the file stay empty.
        """
        note = self.partial / f"{name}.progress.json"
        done = 0
        skipped: Skipped = []
        if note.is_file():
            done, noted = read_json(note)
            skipped = [(position, reason) for position, reason in noted]
        order = part.images.order(len(part.names))
        if done == len(order):
            return skipped
        file = self.partial / f"{name}.images.npy"
        with ImageFile(file, len(order), shape, new=done == 0) as output:
            stored = part.images.read(order[done:])
            decoded = _ahead(self._decode, stored, result_bytes=int(np.prod(shape)))
            for position, pixels in zip(map(int, order[done:]), decoded, strict=True):
                if isinstance(pixels, DamagedImage):
                    skipped.append((position, self._skip(part.names[position], pixels)))
                else:
                    self._check_shape(part.names[position], pixels.shape, shape)
                    output.write(position, pixels)
                done += 1
                if done % STRIDE == 0 or done == len(order):
                    # The images first: the note must not be ahead of what is on the disk.
                    output.flush()
                    write_json(note, (done, skipped))
                    report(done)
        return skipped

    def _skip(self, name: str, error: DamagedImage) -> str:
        if self.damaged == "raise":
            raise UserError(
                f"image '{name}' of '{self.listing.files[0]}' {error}. Leave out and count such "
                "images with prepare(damaged='skip')."
            )
        return str(error)

    def _check_shape(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise UserError(
                f"image '{name}' has shape {shape} and the first one {expected}: give a size."
            )

    def _write_tables(self, name: str, part: Listed, skipped: Skipped) -> None:
        """Write labels, groups and names, and remove skipped images from the file of images."""
        count = len(part.names)
        kept = np.setdiff1d(np.arange(count), [position for position, _ in skipped])
        if not len(kept):
            raise UserError(f"'{self.listing.files[0]}' holds no {name} image that can be decoded.")
        groups = np.zeros(count) if part.groups is None else part.groups
        for kind, values in (("labels", part.labels), ("groups", groups)):
            np.save(self.partial / f"{name}.{kind}.npy", np.asarray(values)[kept].astype("<i4"))
        names = "".join(f"{part.names[position]}\n" for position in kept)
        (self.partial / f"{name}.names.txt").write_bytes(names.encode("utf-8", "surrogateescape"))
        if skipped:
            keep(self.partial / f"{name}.images.npy", kept)

    def _write_meta(self, shape: tuple[int, ...], skipped: dict[str, Skipped]) -> None:
        lists = {name: getattr(self.listing, name).names for name in PARTS}
        files = [f"{part}.{array}.npy" for part in PARTS for array in ARRAYS]
        files += [f"{part}.names.txt" for part in PARTS]
        meta = {
            "version": VERSION,
            "class_names": self.listing.class_names,
            "group_names": self.listing.group_names,
            "shape": shape,
            "examples": {name: len(lists[name]) - len(skipped[name]) for name in PARTS},
            "skipped": {
                name: [
                    {"name": lists[name][position], "reason": reason}
                    for position, reason in skipped[name]
                ]
                for name in PARTS
            },
            "left_out": self.listing.left_out,
            "split": self.listing.split,
            "made_from": self.plan,
            "files": {file: sha256_of(self.partial / file) for file in files},
        }
        write_json(self.meta, {**meta, "sha256": digest(meta)})


def _check_parts(listing: Listing) -> None:
    """Check that there are training and test images, before any is decoded."""
    for kind, part in (("training", listing.train), ("test", listing.test)):
        if not len(part.names):
            raise UserError(f"'{listing.files[0]}' holds no {kind} image.")


def _ahead(
    work: Callable[[Stored], Any], items: Iterable[Stored], result_bytes: int
) -> Iterator[Any]:
    """The results of `work` in the order of the items, computed in a thread for each core.

    Only a few items are read in advance, and fewer where they are large.

    Args:
        work: what to do with an item.
        items: the images as they are stored.
        result_bytes: the size of a result.
    """
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    waiting = 0
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[int, Future]] = deque()
        for item in items:
            size = len(item) if isinstance(item, bytes) else item.nbytes
            size += result_bytes
            while pending and (
                len(pending) >= ITEMS_PER_THREAD * threads or waiting + size > READ_AHEAD
            ):
                done_size, done = pending.popleft()
                waiting -= done_size
                yield done.result()
            pending.append((size, pool.submit(work, item)))
            waiting += size
        for _, done in pending:
            yield done.result()
