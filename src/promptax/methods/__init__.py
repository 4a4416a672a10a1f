"""The methods, a file each."""

from promptax.methods.coda import CODAPrompt as CODAPrompt
from promptax.methods.derpp import DERPP as DERPP
from promptax.methods.dualprompt import DualPrompt as DualPrompt
from promptax.methods.er import ER as ER
from promptax.methods.ewc import EWC as EWC
from promptax.methods.finetune import Finetune as Finetune
from promptax.methods.hide import HiDePrompt as HiDePrompt
from promptax.methods.joint import Joint as Joint
from promptax.methods.l2p import L2P as L2P
from promptax.methods.linear import Linear as Linear
from promptax.methods.lwf import LwF as LwF
from promptax.methods.ncm import NCM as NCM
from promptax.methods.ranpac import RanPAC as RanPAC
from promptax.methods.slca import SLCA as SLCA
from promptax.methods.sldc import SLDC as SLDC
from promptax.methods.sprompts import SPrompts as SPrompts
