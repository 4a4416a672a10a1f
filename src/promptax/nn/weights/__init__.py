"""Pre-trained weights: from the name of a file or a timm tag to a backbone, and back to a file.

How `load_vit(name)` and `read_backbone(name)` get to a backbone, and which file does each step:

1. `read.py` finds the file: a path, the weights that come with the package, or a tag of
   `catalogue.py`, for which `cache.py` looks among the files that `fetch.py` has downloaded. It
   recognises the format by the content of the file.
2. `npz.py`, `safetensors.py` and `torch.py` read the arrays of a format. One named array is called
   a leaf. PyTorch's files are pickles, which `pickles.py` reads without executing them.
3. The names differ from library to library. `naming/` has tables for timm, Hugging Face
   transformers, OpenCLIP and the authors' own code. `naming/files.py` chooses one, from which
   `naming/scheme.py` converts a file to the names of Google's files, which are the common form;
   `leaves.py` lists them.
4. `metadata.py` holds the facts that no array shows, such as the activation and the normalisation.
   They come from the caller, then the catalogue, then the file or a `config.json` beside it, then
   the defaults of the family.
5. `vit.py` has the result, `Weights`. Which leaves there are shows which kind of ViT it is
   (`structure.py`). `build` checks every leaf (`check.py`), resizes the position embedding
   (`position.py`) and puts the leaves into a `ViT` (`leaves.py`).

`resnet.py` does steps 2 to 5 for a ResNet. `write_npz` stores a ViT in the common form with its
metadata, so that reading it needs no tables.
"""

from promptax.core.settings import STATISTICS as STATISTICS
from promptax.nn.weights.catalogue import CATALOGUE as CATALOGUE
from promptax.nn.weights.leaves import vit_from_leaves as vit_from_leaves
from promptax.nn.weights.leaves import vit_leaves as vit_leaves
from promptax.nn.weights.metadata import FAMILIES as FAMILIES
from promptax.nn.weights.metadata import Metadata as Metadata
from promptax.nn.weights.npz import read_npz as read_npz
from promptax.nn.weights.npz import write_npz as write_npz
from promptax.nn.weights.position import resize_position as resize_position
from promptax.nn.weights.read import BUNDLED as BUNDLED
from promptax.nn.weights.read import load_vit as load_vit
from promptax.nn.weights.read import read_backbone as read_backbone
from promptax.nn.weights.read import read_weights as read_weights
from promptax.nn.weights.resnet import ResNetWeights as ResNetWeights
from promptax.nn.weights.resnet import is_resnet as is_resnet
from promptax.nn.weights.resnet import load_resnet as load_resnet
from promptax.nn.weights.resnet import read_resnet as read_resnet
from promptax.nn.weights.resnet import resnet_from_leaves as resnet_from_leaves
from promptax.nn.weights.resnet import resnet_leaves as resnet_leaves
from promptax.nn.weights.resnet import resnet_weights as resnet_weights
from promptax.nn.weights.vit import Weights as Weights
