"""L2P, Learning to Prompt (Wang et al., CVPR 2022, arXiv 2112.08654).

Follows the authors' last code, which differs from the paper in the batch vote (`vote_group`)
and in putting prompts in front of the class token. The first release, which the PyTorch ports
follow, is `L2P.v1()`. Unlike the authors' code, gradient and clip norm cover trainable leaves only.
"""

import jax.random as jr
from jaxtyping import PyTree

from promptax.core.types import Task
from promptax.methods.base import Key, only, union
from promptax.methods.components.pool import AbstractPoolMethod
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import PromptPool, QueryKind
from promptax.nn.prompted import PromptedViT, PromptPlacement, Readout, require_vit
from promptax.nn.vit import Linear


class L2P(AbstractPoolMethod):
    """Learning to Prompt: tokens from a pool, chosen by the image, in front of the sequence."""

    pool_size: int = 10
    """Prompts in the pool (M)."""
    prompt_length: int = 10
    """Tokens of a prompt (L_p)."""
    top_k: int = 4
    """Prompts given to an image (N)."""
    layers: tuple[int, ...] = (0,)
    """Blocks at whose entry prompts are put in front of the sequence."""
    learned_keys: bool = True
    """Learn a key for each prompt; otherwise its key is its mean."""
    query_kind: QueryKind = "cls"
    """The query by which prompts are chosen for an image."""
    readout: Readout = "prompt"
    """The tokens that the head reads (read-out)."""
    position: PromptPlacement = "front"
    """Prompts before the class token, or between it and the patches (first release)."""
    pull: float = 1.0
    """Weight of the term that pulls the selected keys towards the query (lambda)."""
    vote_group: int | None = 16
    """Number of training examples that vote on their prompts together (published: 16, those of a
    device). None: each chooses for itself."""
    task_mask: bool = False
    """Give task t the prompts t * top_k to (t + 1) * top_k in training."""
    transfer_prompts: bool = False
    """Start a task's prompts from those of the task before."""
    transfer_keys: bool = False
    """Start a task's keys from those of the task before."""
    train_backbone: bool = False
    """Train the whole ViT too (published for CORe50); queries still come from the pre-trained
    one."""

    @classmethod
    def v1(cls) -> "L2P":
        """The first release (December 2021), whose numbers are the ones most often quoted."""
        return cls(prompt_length=5, top_k=5, pull=0.1, position="after_cls", vote_group=16)

    @property
    def has_pool(self) -> bool:
        """L2P always has a pool."""
        return True

    def model(self, backbone: AbstractBackbone, num_classes: int, *, key: Key) -> PromptedViT:
        """Make a zero head, and prompts and keys drawn uniformly from [0, 0.01)."""
        vit = require_vit(backbone)
        pool = PromptPool.tokens(
            vit.dim,
            size=self.pool_size,
            length=self.prompt_length,
            top_k=self.top_k,
            layers=self.layers,
            learned_keys=self.learned_keys,
            key=jr.fold_in(key, 0),
        )
        return PromptedViT(
            vit,
            Linear(vit.dim, num_classes),
            pool,
            query_backbone=vit if self.train_backbone else None,
            readout=self.readout,
            query_kind=self.query_kind,
            position=self.position,
        )

    def trainable(self, model: PromptedViT, task: Task) -> PyTree:
        """Prompts, keys and head; the backbone only if `train_backbone` is set."""
        prompts = only(model, lambda model: (model.pool, model.head))
        if not self.train_backbone:
            return prompts
        return union(prompts, only(model, lambda model: model.backbone))
