"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799).

Follows the authors' code. Keys and values of a prefix are kept apart throughout: the widely
copied PyTorch port reshapes them so that prefixes of one example leak into another.
"""

import jax.random as jr
from jaxtyping import PyTree

from promptax.core.errors import UserError
from promptax.core.types import Task
from promptax.methods.base import Key, only
from promptax.methods.components.pool import AbstractPoolMethod
from promptax.nn.backbone import AbstractBackbone
from promptax.nn.prompt import PrefixPrompt, PromptPool, QueryKind
from promptax.nn.prompted import PromptedViT, Readout, require_vit
from promptax.nn.vit import Linear


class DualPrompt(AbstractPoolMethod):
    """DualPrompt: a prefix shared by all tasks, and one for each task, chosen by the image."""

    pool_size: int = 10
    """Number of E-prompts; with `top_k` 1, one for each task."""
    e_length: int = 5
    """Length of an E-prompt."""
    e_layers: tuple[int, ...] = (2, 3, 4)
    """Blocks with an E-prompt. If no block is given, there is only the G-prompt."""
    g_length: int = 5
    """Length of the G-prompt."""
    g_layers: tuple[int, ...] = (0, 1)
    """Blocks with the G-prompt, which comes first in a block with both. If no block is given, there
    are only E-prompts."""
    top_k: int = 1
    """E-prompts given to an image."""
    same_key_value: bool = False
    """Let one array serve as key and as value."""
    query_kind: QueryKind = "cls"
    """The query by which prompts are chosen for an image."""
    readout: Readout = "token"
    """The tokens that the head reads (read-out)."""
    pull: float = 1.0
    """Weight of the term that pulls the selected keys towards the query (lambda)."""
    vote_group: int | None = None
    """Number of training examples that vote together on their E-prompts; None: each chooses for
    itself."""
    task_mask: bool = True
    """Give task t its own E-prompt in training."""
    transfer_prompts: bool = True
    """Start a task's E-prompt from that of the task before."""
    transfer_keys: bool = False
    """Start a task's key from that of the task before."""

    @property
    def has_pool(self) -> bool:
        """Whether any block has an E-prompt."""
        return bool(self.e_layers)

    def model(self, backbone: AbstractBackbone, num_classes: int, *, key: Key) -> PromptedViT:
        """Make a zero head, and prompts and keys drawn uniformly from [0, 0.01)."""
        if not self.e_layers and not self.g_layers:
            raise UserError(
                "DualPrompt has neither E-layers nor G-layers, so there is no prompt: give at "
                "least one of DualPrompt(e_layers=...) and DualPrompt(g_layers=...)."
            )
        vit = require_vit(backbone)
        config = vit.config
        heads = config.heads
        head_dim = config.dim // config.heads
        pool = None
        if self.e_layers:
            pool = PromptPool.prefixes(
                heads,
                head_dim,
                size=self.pool_size,
                length=self.e_length,
                top_k=self.top_k,
                layers=self.e_layers,
                same_key_value=self.same_key_value,
                key=jr.fold_in(key, 0),
            )
        shared = None
        if self.g_layers:
            shared = PrefixPrompt.init(
                heads,
                head_dim,
                length=self.g_length,
                layers=self.g_layers,
                same_key_value=self.same_key_value,
                key=jr.fold_in(key, 1),
            )
        return PromptedViT(
            vit,
            Linear(config.dim, num_classes),
            pool,
            shared,
            readout=self.readout,
            query_kind=self.query_kind,
        )

    def trainable(self, model: PromptedViT, task: Task) -> PyTree:
        """E-prompts, their keys, the G-prompt and the head."""
        return only(model, lambda model: (model.pool, model.shared, model.head))
