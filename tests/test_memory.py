"""What a compiled step keeps in memory: by the compiler's own account, of each device."""

import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import pytest
import toy

from promptax import nn
from promptax.core.settings import Schedule
from promptax.core.sharding import make_mesh
from promptax.training.trainer import Trainer

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from memory import compile_step  # pyright: ignore[reportMissingImports]

# Weights dwarf activations: 5 tokens of 64, and 8 images.
WIDE = nn.ViTConfig(patch=8, dim=64, depth=4, heads=4, mlp=512, image=16)
RECIPE = replace(toy.RECIPE, schedule=Schedule(1, 8))
REMAT_ALL = nn.Execution(remat="all")


def memory(name, *, depth=4, layout=(1, 1), config=WIDE, recipe=RECIPE, **options):
    mesh = make_mesh(*layout)
    method = toy.METHODS[name]
    stream = toy.make_stream()

    def create():
        vit = nn.ViT(replace(config, depth=depth), key=jr.key(0), **options)
        return Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(0))

    account = compile_step(create, stream).memory_analysis()
    assert account is not None
    return account


def bytes_of_blocks(depth):
    vit = eqx.filter_eval_shape(lambda: nn.ViT(replace(WIDE, depth=depth), key=jr.key(0)))
    return sum(4 * leaf.size for leaf in jax.tree.leaves(vit.blocks))


@pytest.mark.slow
def test_frozen_blocks_add_themselves_and_a_copy_to_scan():
    """No gradient and no moments: what is written does not grow. All blocks but the last, which is
    run apart, are copied to be scanned."""
    shallow, deep = (memory("l2p", depth=depth, execution=REMAT_ALL) for depth in (4, 8))
    added = bytes_of_blocks(8) - bytes_of_blocks(4)
    assert deep.output_size_in_bytes == shallow.output_size_in_bytes
    assert deep.alias_size_in_bytes == shallow.alias_size_in_bytes > 0
    assert deep.argument_size_in_bytes - shallow.argument_size_in_bytes == added
    assert deep.temp_size_in_bytes - shallow.temp_size_in_bytes < 1.1 * added


def test_trained_blocks_add_two_moments_and_a_gradient_besides():
    shallow, deep = (memory("finetune", depth=depth, execution=REMAT_ALL) for depth in (4, 8))
    added = bytes_of_blocks(8) - bytes_of_blocks(4)
    assert deep.output_size_in_bytes - shallow.output_size_in_bytes == 3 * added
    assert deep.argument_size_in_bytes - shallow.argument_size_in_bytes == 3 * added
    assert deep.temp_size_in_bytes - shallow.temp_size_in_bytes > 1.9 * added


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l2p", "finetune"])
@pytest.mark.parametrize("remat", ["all", "projections"])
def test_split_blocks_are_never_whole_all_at_once(name, remat):
    whole, split = (
        memory(name, depth=8, layout=layout, execution=nn.Execution(remat=remat))
        for layout in ((8, 1), (1, 8))
    )
    copies = 3 if name == "finetune" else 1
    saved = copies * bytes_of_blocks(8) * 7 / 8
    assert whole.argument_size_in_bytes - split.argument_size_in_bytes == pytest.approx(saved)
    assert split.temp_size_in_bytes < bytes_of_blocks(8)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), [("vit-l/16", 1.3), ("vit-h/14", 3.0)])
def test_large_models_fit_small_devices_where_they_are_split(size, most):
    """GiB of each of 8 devices, in batches of 128."""
    config = nn.vit_config(size)
    recipe = replace(
        toy.RECIPE,
        schedule=Schedule(1, 128),
        images=replace(toy.RECIPE.images, size=224, resize=256),
    )
    options = {"config": config, "depth": config.depth, "recipe": recipe}
    options |= {"dtype": "bfloat16", "execution": REMAT_ALL}
    whole, split = (memory("l2p", layout=layout, **options) for layout in ((8, 1), (1, 8)))
    total = lambda account: (account.argument_size_in_bytes + account.temp_size_in_bytes) / 2**30
    assert total(split) < most < total(whole)
    assert split.argument_size_in_bytes < 0.14 * whole.argument_size_in_bytes
