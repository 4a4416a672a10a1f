"""Naming schemes: which tensor of a PyTorch library holds which parameter of a ViT.

`scheme.py` has the data type and applies it to a file; `timm.py` (with the authors' own code),
`huggingface.py` and `clip.py` (with OpenCLIP) have the tables, and the readers of the config files
that the libraries write. `files.py` finds the table of a file, and `refused.py` tells the families
that none of them can describe.
"""
