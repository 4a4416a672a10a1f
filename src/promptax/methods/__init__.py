"""The methods, a file each."""

from promptax.methods.dualprompt import DualPrompt as DualPrompt
from promptax.methods.finetune import Finetune as Finetune
from promptax.methods.joint import Joint as Joint
from promptax.methods.l2p import L2P as L2P
from promptax.methods.linear import Linear as Linear
