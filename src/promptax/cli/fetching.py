"""`promptax train --fetch`: bring the data and weights of an experiment that are not here yet."""

from promptax.cli.data import fetch as fetch_data
from promptax.data import BUNDLED_SETS, prepared_names
from promptax.data.benchmark import BENCHMARKS
from promptax.data.catalog import CATALOG
from promptax.data.location import data_dir_flags
from promptax.nn.weights import CATALOGUE
from promptax.nn.weights.fetch import fetch_weights
from promptax.runs.inputs import Data


def fetch_missing_weights(name: str) -> None:
    """Download weights, if the name is a tag whose file is not here; leave other names alone.

    Raises `UserError` as `fetch_weights` does.
    """
    if name in CATALOGUE:
        entry = CATALOGUE[name]
        print(f"{name}: {entry.trained_on}. Licence: {entry.licence}.", flush=True)
        fetch_weights(name)


def fetch_missing_data(data: Data) -> None:
    """Download and prepare the data sets of a stream that are not here.

    Sets that nobody offers for download are left alone; reading them says what is missing.

    Raises `UserError` as `promptax data fetch` does.
    """
    if data.train is not None:
        return
    benchmark = BENCHMARKS.get(data.stream)
    names = data.sets or ((data.stream,) if benchmark is None else benchmark.sets)
    here = {*BUNDLED_SETS, *prepared_names(data.dir)}
    for name in names:
        if name in CATALOG and name not in here:
            fetch_data.run([name, "--prepare", *data_dir_flags(data.dir)])
