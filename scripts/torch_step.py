"""The same training step in PyTorch, for `scripts/benchmark.py step --against torch` and `gpu`.

A plain ViT as in timm (fused attention, one linear layer for query, key and value), a frozen query
pass, a prompted pass, the loss and the optimizer of L2P and DualPrompt. It exists to be timed: it
loads no data and takes no votes. It starts from the weights of promptax's model, so that the losses
of both can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# PyTorch is no dependency of promptax, so type checkers may not find it.
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from promptax.nn import ViTConfig

Dtype = Literal["float32", "bfloat16"]
CLASSES = 100
"""Outputs of the head."""
COMPETING = 10
"""Classes of a task: the logits of the others are masked."""


class Block(nn.Module):
    """Pre-norm transformer block; keys and values can be put in front."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.mlp), nn.GELU(approximate="tanh"), nn.Linear(config.mlp, dim)
        )

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if prefix is not None:  # [batch, 2, length, heads, head_dim]
            before = prefix.to(key.dtype).permute(1, 0, 3, 2, 4)
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A Vision Transformer without a head."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch = nn.Conv2d(3, config.dim, config.patch, config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + config.grid**2, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(
        self, images: Tensor, tokens: Tensor | None = None, prefixes: Mapping[int, Tensor] = {}
    ) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        # In the type of the patches: otherwise autocast leaves the residual stream in float32,
        # which takes longer than promptax's in bfloat16.
        cls = self.cls.expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([cls, x], 1) + self.position.to(x.dtype)
        x = x if tokens is None else torch.cat([tokens.to(x.dtype), x], 1)
        for number, block in enumerate(self.blocks):
            x = block(x, prefixes.get(number))
        return self.norm(x)


class Pool(nn.Module):
    """Prompts and a learned key for each."""

    def __init__(self, size: int, top_k: int, dim: int, shape: tuple[int, ...]):
        super().__init__()
        self.top_k = top_k
        self.prompt = nn.Parameter(0.01 * torch.rand(size, *shape))
        self.key = nn.Parameter(0.01 * torch.rand(size, dim))

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen prompts `[batch, top_k, ...]`, and the sum of their similarities."""
        cosine = F.normalize(query, dim=1) @ F.normalize(self.key, dim=1).T
        similarity, index = cosine.topk(self.top_k, dim=1)
        return self.prompt[index], similarity.sum(1)


class L2P(nn.Module):
    """Prompts in front of the tokens; the head sees their mean."""

    def __init__(self, vit: ViT, config: ViTConfig):
        super().__init__()
        self.vit, self.head = vit.requires_grad_(False), nn.Linear(config.dim, CLASSES)
        self.pool = Pool(10, 4, config.dim, (10, config.dim))

    def forward(self, images: Tensor, query: Any = None) -> tuple[Tensor, Tensor]:
        if query is None:
            with torch.no_grad():
                query = self.vit(images)[:, 0]
        prompts, similarity = self.pool(query.float())
        tokens = prompts.flatten(1, 2)
        x = self.vit(images, tokens)[:, : tokens.shape[1]]
        return self.head(x.float().mean(1)), similarity


class DualPrompt(nn.Module):
    """G-prefixes in blocks 0 and 1, E-prefixes in blocks 2 to 4; the head sees the class token."""

    def __init__(self, vit: ViT, config: ViTConfig):
        super().__init__()
        self.vit, self.head = vit.requires_grad_(False), nn.Linear(config.dim, CLASSES)
        shape = (2, 5, config.heads, config.dim // config.heads)
        self.general = nn.Parameter(0.01 * torch.rand(2, *shape))
        self.pool = Pool(10, 1, config.dim, (3, *shape))

    def forward(self, images: Tensor, query: Any = None) -> tuple[Tensor, Tensor]:
        if query is None:
            with torch.no_grad():
                query = self.vit(images)[:, 0]
        chosen, similarity = self.pool(query.float())
        general = self.general[:, None].expand(-1, len(images), *self.general.shape[1:])
        prefixes = {0: general[0], 1: general[1]}
        prefixes |= {2 + n: chosen[:, 0, n] for n in range(3)}
        return self.head(self.vit(images, prefixes=prefixes)[:, 0].float()), similarity


class Classifier(nn.Module):
    """A head on the class token; the ViT is trained or frozen."""

    def __init__(self, vit: ViT, config: ViTConfig, trained: bool):
        super().__init__()
        self.vit, self.head = vit.requires_grad_(trained), nn.Linear(config.dim, CLASSES)

    def forward(self, images: Tensor, query: Any = None) -> tuple[Tensor, Tensor]:
        similarity = torch.zeros(len(images), device=images.device)
        return self.head(self.vit(images)[:, 0].float()), similarity


METHODS: Mapping[str, Callable[[ViT, ViTConfig], nn.Module]] = {
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "linear": lambda vit, config: Classifier(vit, config, trained=False),
    "finetune": lambda vit, config: Classifier(vit, config, trained=True),
}


@dataclass(frozen=True)
class TorchStep:
    """A step, or an evaluation, that can be called again and again."""

    method: str
    config: ViTConfig
    dtype: Dtype
    mode: str | None
    """Of `torch.compile`, such as `default` or `max-autotune`; None: not compiled."""
    learning_rate: float

    def make(self, weights: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[], Tensor]:
        """A training step, which gives its loss without waiting for it.

        Args:
            weights: a model of promptax, to start from.
            images: a batch, `[batch, height, width, channel]`.
            labels: the class of each image.
        """
        model, run = self._model(weights)
        trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
        device = trained[0].device
        # One kernel for all leaves on a GPU; PyTorch's default loops over them.
        fused = device.type == "cuda"
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate, fused=fused)
        pixels = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous()
        wanted = torch.tensor(labels, device=device).long()
        allowed = torch.arange(CLASSES, device=device) < COMPETING

        def step() -> Tensor:
            if self.mode is not None:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device.type, torch.bfloat16, enabled=self._half):
                logits, similarity = run(pixels)
            logits = logits.float().masked_fill(~allowed, float("-inf"))
            loss = F.cross_entropy(logits, wanted) - similarity.float().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            return loss.detach()

        return step

    def evaluate(self, weights: Any, images: np.ndarray) -> Callable[[], Tensor]:
        """The evaluation of a batch whose queries are known; gives the predicted classes."""
        model, run = self._model(weights)
        device = next(model.parameters()).device
        pixels = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous()
        query = torch.ones(len(images), self.config.dim, device=device)

        def evaluate() -> Tensor:
            if self.mode is not None:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self._half):
                return run(pixels, query)[0].argmax(1)

        return evaluate

    @property
    def _half(self) -> bool:
        return self.dtype == "bfloat16"

    def _model(self, weights: Any) -> tuple[Any, Callable]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # As JAX does by default: float32 products in TF32 on a GPU, and in float32 on a CPU.
        torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
        model = METHODS[self.method](ViT(self.config), self.config)
        copy_weights(model, weights)
        model = model.to(device)
        vit: Any = model.vit
        if self._half and not any(leaf.requires_grad for leaf in vit.parameters()):
            for layer in vit.modules():
                # Frozen weights are cast once, rather than by autocast in each step.
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(torch.bfloat16)
        return model, model if self.mode is None else torch.compile(model, mode=self.mode)


def copy_weights(model: nn.Module, weights: Any) -> None:
    """Give a model the weights of the same one of promptax."""
    vit = weights.backbone
    state = {}

    def put(name: str, value: Any) -> None:
        # Frozen weights may be in bfloat16 already, of which PyTorch takes no NumPy arrays.
        state[name] = torch.tensor(np.asarray(value, np.float32))

    def linear(name: str, kernel: Any, bias: Any) -> None:
        put(f"{name}.weight", np.asarray(kernel, np.float32).T)
        put(f"{name}.bias", bias)

    def norm(name: str, layer: Any, number: Any = ...) -> None:
        put(f"{name}.weight", layer.scale[number])
        put(f"{name}.bias", layer.bias[number])

    put("vit.patch.weight", np.asarray(vit.patch_kernel, np.float32).transpose(3, 2, 0, 1))
    put("vit.patch.bias", vit.patch_bias)
    assert vit.cls_token is not None
    assert vit.position is not None
    put("vit.cls", vit.cls_token[None, None])
    put("vit.position", vit.position[None])
    dim, blocks = vit.dim, vit.blocks
    assert blocks.attention.qkv_bias is not None
    for number in range(vit.config.depth):
        name, attention = f"vit.blocks.{number}", blocks.attention
        norm(f"{name}.norm1", blocks.attention_norm, number)
        norm(f"{name}.norm2", blocks.mlp_norm, number)
        qkv, out = attention.qkv[number].reshape(dim, -1), attention.out[number].reshape(-1, dim)
        linear(f"{name}.qkv", qkv, blocks.attention.qkv_bias[number].reshape(-1))
        linear(f"{name}.proj", out, attention.out_bias[number])
        for place, layer in ((0, blocks.mlp.hidden), (2, blocks.mlp.out)):
            linear(f"{name}.mlp.{place}", layer.kernel[number], layer.bias[number])
    norm("vit.norm", vit.norm)
    linear("head", weights.head.kernel, weights.head.bias)
    if getattr(weights, "pool", None) is not None:
        prompt = np.asarray(weights.pool.prompt)
        put("pool.prompt", prompt.transpose(2, 0, 1, 3, 4, 5) if prompt.ndim == 6 else prompt[0])
        put("pool.key", weights.pool.key)
    if getattr(weights, "shared", None) is not None:
        put("general", weights.shared.prompt)
    model.load_state_dict(state)
