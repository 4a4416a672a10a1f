"""Naming schemes: which tensor of a PyTorch library holds which parameter of a ViT.

`scheme.py` has the data type and applies it to a file; `timm.py`, `huggingface.py` and `clip.py`
have one table each, and the reader of the `config.json` that the library writes beside its files.
"""
