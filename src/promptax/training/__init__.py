"""A method on a stream, in memory: state, compiled steps, loop, evaluation, metrics."""
