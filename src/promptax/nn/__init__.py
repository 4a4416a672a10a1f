"""Models: the Vision Transformer, prompts, and both together."""

from promptax.nn.prompt import PrefixPrompt as PrefixPrompt
from promptax.nn.prompt import PromptPool as PromptPool
from promptax.nn.prompt import Selection as Selection
from promptax.nn.prompt import Vote as Vote
from promptax.nn.prompted import Output as Output
from promptax.nn.prompted import PromptedViT as PromptedViT
from promptax.nn.vit import SIZES as SIZES
from promptax.nn.vit import Linear as Linear
from promptax.nn.vit import ViT as ViT
from promptax.nn.vit import ViTConfig as ViTConfig
from promptax.nn.vit import vit_config as vit_config
from promptax.nn.weights import About as About
from promptax.nn.weights import Weights as Weights
from promptax.nn.weights import load_vit as load_vit
from promptax.nn.weights import read_npz as read_npz
from promptax.nn.weights import read_weights as read_weights
from promptax.nn.weights import vit_from_leaves as vit_from_leaves
from promptax.nn.weights import vit_leaves as vit_leaves
from promptax.nn.weights import write_npz as write_npz
