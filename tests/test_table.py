"""`scripts/table.py` on two images of each class: it skips, goes on, and survives a failure."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

from promptax.runs.runner import train

STREAM = "split-fashion-mnist"


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "scripts" / "table.py"
    sys.path.append(str(path.parent))  # it imports another script
    spec = importlib.util.spec_from_file_location("table_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["table_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_and_stream_has_a_run_for_each_seed(script):
    runs = list(script.Table().experiments())
    assert len(runs) == 3 * 3 * len(script.METHODS)
    assert len({path for _, path in runs}) == len(runs)


def test_figures_of_papers_are_quoted_with_their_weights_and_sources(script):
    (line,) = [line for line in script.tables([]).splitlines() if "83.83 / 7.63" in line]
    assert "vit_base_patch16_224.orig_in21k" in line
    assert "l2p-pytorch, README.md:113" in line


@pytest.mark.slow
def test_a_table_of_finished_resumed_and_failed_runs(script, tmp_path, capsys, monkeypatch):
    """A buffer of 500 images is more than there are."""
    flags = script.Table(
        (STREAM,),
        ("ncm", "linear", "er"),
        (0, 1),
        per_class=2,
        runs=tmp_path / "runs",
        out=tmp_path / "table.md",
        figure=tmp_path / "table.png",
    )
    # One run is finished before, and one was cut off.
    for experiment, path in list(flags.experiments())[:2]:
        train(experiment, path)
    done = tmp_path / "runs" / STREAM / "ncm" / "seed-0" / "result.json"
    cut = tmp_path / "runs" / STREAM / "ncm" / "seed-1" / "result.json"
    cut.unlink()
    written = done.stat().st_mtime_ns
    assert script.main(flags) == 1
    assert done.stat().st_mtime_ns == written
    assert cut.is_file()
    told = capsys.readouterr().err
    assert told.count("expected 1 to 20") == 4  # each when it fails, and again in the end
    assert "2 of 6 failed" in told
    text = flags.out.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| ncm", "| lin"))]
    assert [row[0] for row in rows] == ["| ncm", "| linear"] * 2
    overview, rows = rows[:2], rows[2:]
    assert all("±" in row[1] and row[3] == "2" and row[5] == "0" for row in rows)
    assert rows[1][4] == "1,610"
    assert rows[0][8] == rows[1][8]
    # One stream: the same without the number of seeds.
    assert overview == [row[:3] + row[4:] for row in rows]
    with Image.open(flags.figure) as image:
        assert image.width > 300
    assert flags.figure.with_stem("table-dark").is_file()

    # Again without the one that fails: nothing is trained.
    monkeypatch.setattr(script, "train", None)
    assert script.main(dataclasses.replace(flags, methods=("ncm", "linear"))) == 0
    assert flags.out.read_text() == text
    # With other settings, what is there is not taken for a result.
    other = dataclasses.replace(flags, methods=("ncm",), per_class=3)
    assert script.finished(*next(other.experiments())) is None
