"""Models: backbones (Vision Transformer, ResNet), their weights, prompts, adapters and heads."""

from promptax.core.described import document_fields
from promptax.nn.backbone import AbstractBackbone as AbstractBackbone
from promptax.nn.backbone import Statistics as Statistics
from promptax.nn.cast import cast_frozen as cast_frozen
from promptax.nn.classifier import Classifier as Classifier
from promptax.nn.execution import Execution as Execution
from promptax.nn.lora import AdaptedViT as AdaptedViT
from promptax.nn.lora import LoRA as LoRA
from promptax.nn.prompt import PrefixPrompt as PrefixPrompt
from promptax.nn.prompt import PromptPool as PromptPool
from promptax.nn.prompt import Selection as Selection
from promptax.nn.prompt import Vote as Vote
from promptax.nn.prompted import Output as Output
from promptax.nn.prompted import PromptedViT as PromptedViT
from promptax.nn.resnet import RESNETS as RESNETS
from promptax.nn.resnet import ResNet as ResNet
from promptax.nn.resnet import ResNetConfig as ResNetConfig
from promptax.nn.resnet import resnet_config as resnet_config
from promptax.nn.vit import SIZES as SIZES
from promptax.nn.vit import Linear as Linear
from promptax.nn.vit import ViT as ViT
from promptax.nn.vit import ViTConfig as ViTConfig
from promptax.nn.vit import vit_config as vit_config
from promptax.nn.weights import Metadata as Metadata
from promptax.nn.weights import ResNetWeights as ResNetWeights
from promptax.nn.weights import Weights as Weights
from promptax.nn.weights import is_resnet as is_resnet
from promptax.nn.weights import load_resnet as load_resnet
from promptax.nn.weights import load_vit as load_vit
from promptax.nn.weights import read_backbone as read_backbone
from promptax.nn.weights import read_npz as read_npz
from promptax.nn.weights import read_resnet as read_resnet
from promptax.nn.weights import read_weights as read_weights
from promptax.nn.weights import resnet_from_leaves as resnet_from_leaves
from promptax.nn.weights import resnet_leaves as resnet_leaves
from promptax.nn.weights import resnet_weights as resnet_weights
from promptax.nn.weights import vit_from_leaves as vit_from_leaves
from promptax.nn.weights import vit_leaves as vit_leaves
from promptax.nn.weights import write_npz as write_npz

document_fields(*list(vars().values()))
