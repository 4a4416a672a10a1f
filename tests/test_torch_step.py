"""The PyTorch step that ours is timed against: that it does the same work, by its losses."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "scripts"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l2p", "dualprompt", "linear", "finetune"])
def test_both_steps_have_the_same_losses(method):
    """From the same weights, over the same images: forward pass, gradient, clipping and Adam."""
    from timing import Work, compiled_step, torch_step  # pyright: ignore[reportMissingImports]

    work = Work(method, "glyph-vit", 8)
    ours, _ = compiled_step(work)
    theirs = torch_step(work, None)
    losses = [(float(ours()), float(theirs())) for _ in range(5)]
    assert losses[-1][0] < losses[0][0] - 0.2
    for one, other in losses:
        assert one == pytest.approx(other, abs=5e-5)
