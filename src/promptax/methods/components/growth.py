"""Settings that depend on the number of tasks, for a stream that has grown."""

import functools

from promptax.methods.base import AbstractMethod


@functools.singledispatch
def for_longer_stream(method: AbstractMethod, before: int, tasks: int) -> AbstractMethod:
    """Adapt the settings of a method to a stream that goes on with more tasks.

    Most methods need no change. A method whose settings depend on the number of tasks, such as a
    pool with a slot for each, registers a function of its own (`for_longer_stream.register`).

    Args:
        method: The method as it was trained.
        before: Number of tasks that were learned.
        tasks: Number of tasks of the longer stream.

    Returns:
        The method for the longer stream.
    """
    return method
