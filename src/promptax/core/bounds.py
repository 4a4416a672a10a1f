"""Bounds of settings, and checks against them."""

from promptax.core.errors import UserError

LARGEST = 1e30
"""Largest factor or strength: float32 ends at 3e38, and products overflow before that."""
SMALLEST = 1e-30
"""Smallest number that is divided by: smaller ones become zero in float32."""
MOST_EPOCHS = 10**6
MOST_IN_BATCH = 2**20
MOST_SAMPLES = 10**6
FINITE = f"a finite number of at least 0 and at most {LARGEST:g}"
"""The expected values of a factor or a strength, for errors."""
SHARE = "between 0 and 1"
"""The expected values of a share, for errors."""


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise `UserError` that names a setting, its value and what was expected, unless it holds."""
    if not holds:
        raise UserError(f"{name} is {value}; expected {expected}.")


def require_count(name: str, count: int, most: int) -> None:
    """Raise `UserError` unless a count is from 1 to `most`."""
    require(1 <= count <= most, name, count, f"at least 1 and at most {most}")
