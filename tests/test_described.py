"""What objects show of themselves, in a terminal, in a notebook and in `help`."""

import dataclasses
import pydoc
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import promptax as px
from promptax.core import settings
from promptax.core.described import document_fields
from promptax.training.loop import Fit
from promptax.training.state import Metrics

MOST_LINES = 20
MOST_CHARACTERS = 1500


def shown(fitted):
    """One of each kind of object that a user meets."""
    run = fitted("linear")
    stream = toy.make_stream()
    yield stream
    yield from (stream.tasks[0], stream.train, px.data.split_glyphs().train)
    yield from (px.data.bundled_set("glyph-domains"), px.data.glyph_domains())
    yield from (run.learner, run.matrices["instance"], run.evaluations[-1])
    yield Fit(run.learner, run.matrices)


def test_a_few_lines_with_sizes_and_no_pixel(fitted):
    for value in shown(fitted):
        text = repr(value)
        assert text.startswith(type(value).__name__)
        assert len(text) < MOST_CHARACTERS
        assert text.count("\n") < MOST_LINES
        assert not re.search(r"array\(|\d\.\d{5}", text), text
        html = getattr(value, "_repr_html_")()  # noqa: B009
        assert html.startswith("<table>")
        assert html.count("<tr>") == len(text.splitlines()) - 1


def test_sizes_and_figures_are_those_of_the_object(fitted):
    stream = px.data.split_glyphs()
    assert "10,000 (1,000 to 1,000 a task)" in repr(stream)
    assert "3,000 in 10 test sets" in repr(stream)
    assert "32 x 32 x 1" in repr(stream)
    matrix = px.AccuracyMatrix(np.array([[0.9, np.nan], [0.8, 0.6]]))
    assert re.search(r"average accuracy +70\.00 %", repr(matrix))
    assert re.search(r"after task 1 +90\.00 +-\n", repr(matrix))
    assert "7 of 7" in repr(fitted("linear").learner)


def test_names_from_files_are_escaped_in_html():
    stream = dataclasses.replace(toy.make_stream(), name="<script>")
    assert "<script>" not in stream._repr_html_()
    assert "&lt;script&gt;" in stream._repr_html_()


def test_metrics_show_numbers_outside_and_none_inside_of_compiled_code():
    loss, accuracy, norm, rate = (jnp.float32(value) for value in (2.34567, 0.5, 1, 0.03))
    metrics = Metrics(loss, accuracy, norm, rate, jnp.int32(0))
    assert repr(metrics).startswith("Metrics(loss 2.3457, accuracy 50.0 %,")
    texts = []
    jax.jit(lambda metrics: texts.append(repr(metrics)))(metrics)
    assert "f32[]" in texts[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (px.Optimizer, "learning_rate: Learning rate for a batch of 256;"),
        (px.methods.L2P, "pool_size: Prompts in the pool (M)."),
        (px.data.TaskStream, "test_sets: The test sets."),
        (px.nn.ViTConfig, "patch: Side of a square patch, in pixels."),
    ],
)
def test_help_documents_fields(kind, words):
    document_fields(kind)  # twice is once
    text = pydoc.plain(pydoc.render_doc(kind))
    assert text.count("Attributes:") == 1
    assert words in text


def test_every_setting_is_documented():
    for kind in vars(settings).values():
        if dataclasses.is_dataclass(kind):
            document_fields(kind)
            doc = kind.__doc__ or ""
            undocumented = [f.name for f in dataclasses.fields(kind) if f"{f.name}:" not in doc]
            assert undocumented in ([], ["mesh", "distributed"])


def test_the_version_is_that_of_the_package():
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert px.__version__ == tomllib.loads(project.read_text())["project"]["version"]


@pytest.mark.slow
def test_type_checkers_find_misspelt_names(tmp_path):
    code = tmp_path / "code.py"
    code.write_text(
        "import promptax as px\npx.fti\npx.data.split_glyhps\npx.methods.L2PP\n"
        "px.fit\npx.data.split_glyphs\npx.Evaluator\npx.__version__\n"
    )
    argv = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(code)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=300).stdout
    wrong = set(re.findall(r'"(\w+)" is not a known attribute', out))
    assert wrong == {"fti", "split_glyhps", "L2PP"}, out
