"""The precision of sums that are solved, inverted or decomposed afterwards.

Accelerators multiply float32 matrices in fewer bits by default (TF32 on NVIDIA, bfloat16 passes on
TPU). That is right for a network, whose next layer tolerates it. Sums over many images (Gram
matrices, class means, centroids, covariances) are different: they are solved, inverted or
orthogonalised afterwards, which magnifies their errors by the condition number. The policy:
networks compute at the default precision, such sums at the highest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def exact_einsum(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` in full float32 precision, whatever the default of the device.

    Use it for every product whose result is solved, decomposed, or compared with similar results.
    """
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)
