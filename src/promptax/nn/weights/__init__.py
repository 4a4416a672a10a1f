"""Pre-trained weights: files of several libraries, to and from a `ViT`."""

from promptax.nn.weights.about import FAMILIES as FAMILIES
from promptax.nn.weights.about import STATISTICS as STATISTICS
from promptax.nn.weights.about import About as About
from promptax.nn.weights.checkpoint import Weights as Weights
from promptax.nn.weights.leaves import resize_position as resize_position
from promptax.nn.weights.leaves import vit_from_leaves as vit_from_leaves
from promptax.nn.weights.leaves import vit_leaves as vit_leaves
from promptax.nn.weights.npz import read_npz as read_npz
from promptax.nn.weights.npz import write_npz as write_npz
from promptax.nn.weights.read import BOX as BOX
from promptax.nn.weights.read import load_vit as load_vit
from promptax.nn.weights.read import read_weights as read_weights
