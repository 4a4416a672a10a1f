"""The methods, one file each, and the interface that they implement.

`base.py` has the interface, `rehearsal.py` the wrapper that adds a replay buffer to any method, and
`components/` what several methods share. A file that defines a method is found by the command line
under its file name (see `registry.py`); the imports here are for users of the library.
"""

from promptax.core.described import document_fields
from promptax.methods.base import AbstractMethod as AbstractMethod
from promptax.methods.base import Prediction as Prediction
from promptax.methods.base import only as only
from promptax.methods.base import union as union
from promptax.methods.coda import CODAPrompt as CODAPrompt
from promptax.methods.components.alignment import Alignment as Alignment
from promptax.methods.components.losses import cross_entropy as cross_entropy
from promptax.methods.derpp import DERPP as DERPP
from promptax.methods.dualprompt import DualPrompt as DualPrompt
from promptax.methods.er import ER as ER
from promptax.methods.ewc import EWC as EWC
from promptax.methods.finetune import Finetune as Finetune
from promptax.methods.hide import HiDePrompt as HiDePrompt
from promptax.methods.l2p import L2P as L2P
from promptax.methods.linear import LinearProbe as LinearProbe
from promptax.methods.lwf import LwF as LwF
from promptax.methods.ncm import NCM as NCM
from promptax.methods.ranpac import RanPAC as RanPAC
from promptax.methods.rehearsal import Rehearsal as Rehearsal
from promptax.methods.slca import SLCA as SLCA
from promptax.methods.sldc import SLDC as SLDC
from promptax.methods.sprompts import SPrompts as SPrompts

document_fields(*list(vars().values()))
