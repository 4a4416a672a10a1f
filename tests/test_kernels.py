"""What `scripts/kernels.py` reads from a compiled program, and compiling for a GPU without one."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from cards import CARDS, mesh_of  # pyright: ignore[reportMissingImports]
from kernels import kernels_of, largest, table  # pyright: ignore[reportMissingImports]

PROGRAM = """HloModule jit_step

%sliced (p0: bf16[2,8,4], p1: bf16[16,8]) -> (bf16[16,4], s8[64]) {
  %p0 = bf16[2,8,4]{2,1,0} parameter(0)
  ROOT %product = (bf16[16,4]{1,0}, s8[64]{0}) custom-call(%p1, %p0), TARGET="__cublas$lt$matmul"
}

%fused (p0: f32[16]) -> f32[16] {
  ROOT %sum = f32[16]{0} add(%p0, %p0)
}

ENTRY %main (x: bf16[16,8], w: bf16[2,8,4]) -> bf16[16,4] {
  %x = bf16[16,8]{1,0} parameter(0)
  %w = bf16[2,8,4]{2,1,0} parameter(1)
  %dynamic_slice_fusion.1 = (bf16[16,4]{1,0}, s8[64]{0}) fusion(%w, %x), kind=kCustom, calls=%sliced
  %element.0 = bf16[16,4]{1,0} get-tuple-element(%dynamic_slice_fusion.1), index=0
  %loop.3 = f32[16]{0} fusion(%element.0, %element.0), kind=kLoop, calls=%fused
  %loop.4 = f32[16]{0} fusion(%element.0, %element.0), kind=kLoop, calls=%fused
  %attended = (bf16[16,4]{1,0}, u8[0]{0}) custom-call(%loop.3), TARGET="__cudnn$fmhaSoftmax"
  ROOT %copy.5 = bf16[16,4]{1,0} copy(%element.0)
}
""".replace("TARGET", "custom_call_target")


def test_kernels_are_counted_by_kind_with_what_they_read_and_write():
    kernels = list(kernels_of(PROGRAM))
    kinds = ["matrix product", "other", "other", "attention", "copy"]
    assert [kernel.kind for kernel in kernels] == kinds
    assert [kernel.read for kernel in kernels] == [128 + 256, 128, 128, 64, 128]
    assert [kernel.written for kernel in kernels] == [128, 64, 64, 128, 128]
    lines = list(table(kernels))
    assert len(lines) == 2 + 4 + 1
    assert lines[-1].startswith("| all | 5 |")
    assert "2 x other  loop" in list(largest(kernels, 2))[1]


def test_cards_are_described_as_xla_reads_them():
    text = CARDS["h200"].description
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text
    assert text.count("{") == text.count("}")
    assert CARDS["a100"].device.capability == 8.0


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="JAX's plugin for NVIDIA GPUs is installed",
)
def test_without_the_plugin_it_says_what_to_install():
    with pytest.raises(SystemExit, match=r"pip install 'promptax\[cuda\]'"):
        mesh_of(CARDS["h100"])
