"""Libraries that slow tests compare with, where they are installed."""

import sys
from types import ModuleType

import pytest


def import_timm() -> ModuleType:
    """timm, which imports torchvision, whose compiled operators exist for one build of torch only.

    timm's models use none of them, so where they do not load it is enough that their names are
    known. Skips the test where timm or torch is not installed.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("timm")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
        return pytest.importorskip("timm")
