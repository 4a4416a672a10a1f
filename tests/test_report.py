"""Tables and figures over runs, methods, seeds and streams."""

import functools
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

import promptax as px
from promptax.cli import main
from promptax.core.errors import UserError
from promptax.methods.registry import builtin_methods
from promptax.runs import plot, reproduce
from promptax.runs.caveats import caveats
from promptax.runs.folder import RunFolder
from promptax.runs.looks import PAGES, look_of
from promptax.runs.plot import colours_of
from promptax.runs.report import group, repeated, table
from promptax.runs.results import check_result, read_result
from promptax.training.metrics import AccuracyMatrix


def result(method="l2p", seed=0, accuracy=0.5, stream="letters", sha="a", **changes):
    """What `result.json` holds of a run over two tasks, as far as a report reads it."""
    matrix = AccuracyMatrix(np.array([[0.9, np.nan], [accuracy, accuracy]]))
    rows = [[0.9, None], [accuracy, accuracy]]
    return {
        "schema": 1,
        "method": method,
        "config": {
            "seed": seed,
            "method": {"name": method},
            "data": {"shuffle_classes": False, "class_seed": None},
        },
        "weights": {"sha256": "w"},
        "stream": {
            "name": stream,
            "class_order": [[0], [1]],
            "class_names": ["a", "b"],
            "sha256": sha,
        },
        "parameters": {"trainable": 1234},
        "accuracy_matrix": rows,
        "tasks_done": 2,
        "after_each_task": [matrix.after(n + 1).summary() for n in range(2)],
        "prompt_usage": [[3, 1] + seed * [1], [0, 4] + seed * [1]] if method == "l2p" else [],
        **matrix.summary(),
        **changes,
    }


WITH_BEFORE = {"accuracy_before": [None, 0.75], "forward_transfer": 0.25}
"""What a result has besides if both tasks have the same two classes."""


def write(folder: Path, content) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"schema": 1, **content["config"]}))
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_seeds_of_the_same_settings_make_one_row_with_mean_and_deviation():
    accuracies = [0.5, 0.6, 0.7]
    rows = table([result(seed=n, accuracy=a) for n, a in enumerate(accuracies)]).splitlines()
    deviation = 100 * statistics.stdev(accuracies)
    assert len(rows) == 5
    assert f"| l2p | 60.00 ± {deviation:.2f} |" in rows[-1]
    assert rows[-1].endswith("| 3 | 1234 |")


def test_one_seed_has_no_deviation_and_a_missing_figure_is_a_dash():
    row = table([result("joint", forgetting=None)]).splitlines()[-1]
    assert "±" not in row
    assert "| 50.00 | 70.00 | - | - |" in row


def test_other_settings_are_another_row():
    other = result(seed=1)
    other["config"]["method"]["pool_size"] = 5
    first = result()
    first["config"]["method"]["pool_size"] = 7
    groups = group([first, other, result("linear")])
    assert [member.name for member in groups] == [
        "l2p (pool_size 7)",
        "l2p (pool_size 5)",
        "linear",
    ]


def test_other_weights_are_another_row():
    assert len(group([result(), result(seed=1, weights={"sha256": "v"})])) == 2


@pytest.mark.parametrize("change", [{"stream": "digits"}, {"sha": "b"}])
def test_streams_are_kept_apart(change):
    text = table([result(), result("joint", **change)])
    assert text.count("| method |") == 2


def test_a_seed_given_twice_and_an_unfinished_run_are_refused():
    with pytest.raises(UserError, match="count one twice"):
        group([result(), result()])
    with pytest.raises(UserError, match="1 of 2 tasks"):
        group([result(tasks_done=1)])


def test_csv_and_latex_hold_the_same_figures():
    results = [result(seed=n, accuracy=0.5 + n / 10) for n in range(2)]
    assert table(results, "csv").splitlines()[1].startswith("letters,l2p,55.00 ± 7.07,")
    latex = table(results, "latex")
    assert r"l2p & 55.00 $\pm$ 7.07 &" in latex
    assert latex.endswith(r"\end{tabular}")


def test_the_command_reads_folders_of_runs_and_draws_them_for_light_and_dark(tmp_path, capsys):
    for seed in range(2):
        write(tmp_path / "runs" / "l2p" / f"seed-{seed}", result(seed=seed))
        write(tmp_path / "runs" / "finetune" / f"seed-{seed}", result("finetune", seed=seed))
    figure = tmp_path / "figure.png"
    assert main(["report", str(tmp_path / "runs"), "--figure", str(figure)]) == 0
    assert capsys.readouterr().out.count("| 2 | 1234 |") == 2
    light, dark = (
        np.asarray(Image.open(path).convert("L"), float)
        for path in (figure, figure.with_stem("figure-dark"))
    )
    assert light.shape == dark.shape
    assert light[0, 0] > 200 > 50 > dark[0, 0]
    assert light.std() > 10


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_chooses_the_format_of_a_figure(ending, begins, tmp_path):
    run = write(tmp_path / "run", result("linear"))
    assert main(["report", f"{run}", "--figure", f"{tmp_path / 'figure'}.{ending}"]) == 0
    for name in ("figure", "figure-dark"):
        assert (tmp_path / f"{name}.{ending}").read_bytes().startswith(begins)


def test_every_method_has_a_look_of_its_own_that_no_company_changes():
    looks = {name: look_of(name) for name in builtin_methods()}
    assert len(set(looks.values())) == len(looks)
    own = look_of("bitfit.py:BitFit")
    assert own not in looks.values()
    assert own == look_of("bitfit.py:BitFit")
    assert look_of("linear-joint") == looks["linear"]
    assert look_of("l2p-replay") == looks["l2p"]
    groups = group([result("l2p"), result("own"), result("linear")])
    assert colours_of(groups) == colours_of(groups[::-1])[::-1]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_on_the_page(theme):
    def luminance(colour):
        channels = np.asarray(to_rgb(colour))
        linear = np.where(channels <= 0.04, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    page = luminance(PAGES[theme][0])
    for name in builtin_methods():
        low, high = sorted((page, luminance(look_of(name).colour)))
        # Half of what WCAG asks of graphics on white: markers and labels tell methods apart, too.
        assert (high + 0.05) / (low + 0.05) > 2


def test_the_accuracy_before_a_task_stands_above_the_diagonal(tmp_path, monkeypatch):
    figure = drawn([result("l2p", **WITH_BEFORE), result("linear")], tmp_path, monkeypatch)
    with_before, without = figure.subfigs[1].axes[:2]
    cells = {text.get_position(): text for text in with_before.texts}
    number = cells[1, 0]
    assert (number.get_text(), number.get_style()) == ("75", "italic")
    assert cells[0, 0].get_style() == cells[1, 1].get_style() == "normal"
    assert with_before.get_xlabel() == "accuracy on task\n(above the diagonal: before)"
    assert without.get_xlabel() == "accuracy on task"


@pytest.mark.parametrize("tasks", [2, 50])
def test_labels_at_the_ends_of_lines_do_not_overlap(tasks, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    groups = group([long_result(name, tasks) for name in builtin_methods()])
    plot.save_comparison(groups, tmp_path / "figure.png")
    figure = figures[0]
    figure.draw_without_rendering()
    axes = figure.subfigs[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(groups)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert box.x1 <= figure.bbox.x1


def drawn(results, tmp_path, monkeypatch):
    """The figure of some results, laid out."""
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    plot.save_comparison(group(results), tmp_path / "figure.png")
    figures[0].draw_without_rendering()
    return figures[0]


def of_rate(rate, weight_decay=0.0, layers=(0,)):
    """A run whose settings differ from others of its method."""
    recipe = {"learning_rate": rate, "weight_decay": weight_decay, "layers": list(layers)}
    config = result()["config"]
    return result(config={**config, "recipe": recipe})


def test_settings_of_a_method_look_the_same_in_any_order_of_arguments(tmp_path, monkeypatch):
    runs = [of_rate(0.1), of_rate(0.03), result("coda"), of_rate(1.0)]
    looks = []
    for order in (runs, runs[::-1]):
        figure = drawn(order, tmp_path, monkeypatch)
        axes = figure.subfigs[0].axes[0]
        looks.append(
            {
                text.get_text(): (line.get_marker(), line.get_fillstyle())
                for text, line in zip(axes.texts, axes.lines[-2 * len(runs) + 1 :: 2], strict=True)
            }
        )
    assert looks[0] == looks[1]
    assert len(set(looks[0].values())) == len(runs)


def test_titles_of_panels_name_every_setting_and_overlap_nothing(tmp_path, monkeypatch):
    runs = [of_rate(rate, decay, range(n)) for rate, decay, n in ((0.1, 0.0, 2), (0.2, 0.1, 12))]
    figure = drawn(runs, tmp_path, monkeypatch)
    panels = [axes for axes in figure.subfigs[1].axes if axes.get_xlabel()]
    titles = [axes.texts[-1] for axes in panels]
    assert {title.get_text() for title in titles} == {
        "l2p: 50.0 %\nlayers [0, 1]\nlearning_rate 0.1\nweight_decay 0.0",
        "l2p: 50.0 %\nlayers [0, 1, 2, 3, 4, 5, 6, ...\nlearning_rate 0.2\nweight_decay 0.1",
    }
    boxes = [title.get_window_extent() for title in titles]
    assert not boxes[0].overlaps(boxes[1])
    above = figure.subfigs[0].axes[0].xaxis.label.get_window_extent()
    assert all(box.y1 <= above.y0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("tasks", [1, 2, 10, 11, 50, 51, 200])
def test_the_numbers_at_an_axis_begin_with_the_first_task(tasks):
    numbers = plot._ticks(tasks)
    assert numbers[0] == 1
    assert len(numbers) <= 11
    assert tasks - numbers[-1] < max(5, tasks / 5)


def test_as_many_settings_are_named_as_tell_rows_apart():
    grid = [
        of_rate(rate, decay, layers)
        for rate in (0.1, 0.2)
        for decay in (0.0, 0.1)
        for layers in ((0,), (1,))
    ]
    for number, run in enumerate(grid):
        run["config"] = {**run["config"], "seed": 0, "zeal": number % 2, "replay": number // 4}
    names = [member.name for member in group(grid)]
    assert len(set(names)) == len(grid)


def test_a_row_whose_settings_are_not_those_of_its_preset_is_told(tmp_path, capsys):
    preset = px.preset("split-glyphs-l2p")
    recipe = replace(preset.recipe, schedule=px.Schedule(epochs=7, batch_size=32))
    for name, experiment in (("same", preset), ("other", replace(preset, recipe=recipe, seed=1))):
        config = json.loads(json.dumps(experiment.to_json()))
        write(tmp_path / name, result(stream="split-glyphs", config=config))
    assert main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "there" not in out
    assert "l2p (epochs 7) on split-glyphs differs from its preset: epochs 7 (there 3)." in err
    assert err.count("differs from its preset") == 1


def long_result(method, tasks):
    """A run whose accuracy is the same as that of all others, so that labels crowd."""
    values = np.where(np.tri(tasks) > 0, 0.8, np.nan)
    matrix = AccuracyMatrix(values)
    rows = [[None if np.isnan(value) else value for value in row] for row in values.tolist()]
    summary: dict[str, Any] = matrix.summary()
    return result(
        method,
        stream="letters",
        accuracy_matrix=rows,
        tasks_done=tasks,
        after_each_task=[matrix.after(n + 1).summary() for n in range(tasks)],
        prompt_usage=[],
        **summary,
    )


def test_runs_are_found_at_any_depth_and_repetitions_are_left_out(tmp_path, capsys):
    write(tmp_path / "l2p", result())
    write(tmp_path / "l2p" / "seed-1", result(seed=1, accuracy=0.7))
    write(tmp_path / "l2p-reproduced", result())
    write(tmp_path / "later" / "l2p", result(accuracy=0.6))
    write(tmp_path / "stopped", result("ncm", tasks_done=1))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "config.json").write_text("{}")
    assert main(["report", f"{tmp_path}", f"{tmp_path / 'l2p'}"]) == 0
    out, err = capsys.readouterr()
    assert "| l2p | 60.00 ± 14.14 |" in out
    assert "ncm" not in out
    assert f"left out '{tmp_path / 'l2p-reproduced'}', which repeats '{tmp_path / 'l2p'}'." in err
    assert f"'{tmp_path / 'later' / 'l2p'}', which repeats" in err
    assert "with other accuracies" in err
    assert f"left out '{tmp_path / 'stopped'}', which is not finished" in err
    assert err.count("left out") == 3


@pytest.mark.parametrize("changed", ["sha256", "images_sha256"])
def test_another_stream_that_was_given_as_an_object_is_no_repetition(changed):
    first = result()
    first["config"]["given"] = ["stream"]
    first["stream"]["images_sha256"] = "i"
    other = {**first, "stream": {**first["stream"], changed: "other"}}
    assert repeated([first, other, first]) == {2: 0}
    rows = [row for row in table([first, other]).splitlines() if row.startswith("| l2p")]
    assert len(rows) == 2
    assert changed == "sha256" or "images other" in rows[1]


def test_tables_of_one_stream_are_titled_by_what_differs():
    few = result("joint", sha="b")
    few["config"]["data"]["per_class"] = 50
    text = table([result(), few])
    assert "**letters (per_class None)** (%)" in text
    assert "**letters (per_class 50)** (%)" in text
    text = table([result(sha="first"), result("joint", sha="second")])
    assert "**letters (split first)** (%)" in text
    assert "**letters (split second)** (%)" in text


def test_several_streams_get_a_figure_each(tmp_path, capsys):
    paths = [
        write(tmp_path / "a", result()),
        write(tmp_path / "b", result("joint", stream="digits", sha="b")),
    ]
    argv = ["report", *map(str, paths), "--figure", str(tmp_path / "figure.png")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    for name in ("digits", "digits-dark", "letters", "letters-dark"):
        assert (tmp_path / f"figure-{name}.png").is_file()
        assert f"figure-{name}.png" in printed
    assert not (tmp_path / "figure.png").exists()


def recorded(**changes):
    """What newer results hold of where they come from."""
    return {
        "evaluation": {"classes": "seen", "every": 1, "batch_size": 100},
        "source": {"version": "0.1.0", "commit": None, "dirty": None, "sha256": "c0ffee"},
        "versions": {"jax": "0.10.2", "jaxlib": "0.10.2"},
        **changes,
    }


def test_runs_that_share_everything_need_no_caveat():
    small = recorded(evaluation={"classes": "seen", "every": 1, "batch_size": 5})
    runs = [result(**recorded()), result("joint", **small), result("joint", 1, **small)]
    assert caveats(runs) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluation": {"classes": "all", "every": 1}}, "protocol: seen classes all joint"),
        ({"weights": {"name": "b", "sha256": "beef"}}, "weights: b beef (1 joint) (2 l2p)"),
        ({"source": {"version": "0.2.0", "sha256": "ab"}}, "version of promptax: 0.1.0 0.2.0"),
        ({"versions": {"jax": "0.12.0", "jaxlib": "0.10.2"}}, "version of jax: 0.10.2 0.12.0"),
        ({"versions": {}}, "version of jax: not recorded"),
    ],
)
def test_what_runs_of_a_table_do_not_share_is_told(change, words):
    runs = [result(**recorded()), result(seed=1, **recorded())]
    told = "\n".join(caveats([*runs, result("joint", **recorded(**change))]))
    assert [word for word in words.split() if word not in told] == [], told
    assert told.count("letters: runs differ in") == 1 + (change == {"versions": {}})


def test_other_splits_are_told_of_though_they_are_in_tables_of_their_own():
    (told,) = caveats([result(), result("joint", sha="b")])
    assert "letters: 2 tables, since runs differ in split" in told


def test_an_order_drawn_from_the_seed_differs_only_between_runs_of_one_seed():
    drawn = lambda method, seed: {
        "seed": seed,
        "method": {"name": method},
        "data": {"shuffle_classes": True, "class_seed": None},
    }
    runs = [result(seed=n, sha=f"split {n}", config=drawn("l2p", n)) for n in range(2)]
    assert caveats(runs) == []
    other = result("joint", seed=1, sha="another", config=drawn("joint", 1))
    (told,) = caveats([*runs, other])
    assert "runs of seed 1 differ in split or images" in told


def test_the_command_warns_beside_its_table(tmp_path, capsys):
    other = result("joint", weights={"name": "b", "sha256": "beef"})
    for folder, content in (("a", result()), ("b", other)):
        write(tmp_path / folder, content)
    assert main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in out
    assert err.startswith("promptax: warning: letters: runs differ in weights:")


# --- numbers and names that no run wrote ---


@pytest.mark.parametrize(
    "change",
    [
        {"average_accuracy": float("inf")},
        {"average_accuracy": float("nan")},
        {"average_accuracy": -5.0},
        {"average_accuracy": 10**400},
        {"forgetting": -1.5},
        {"learning_accuracy": "high"},
        {"parameters": {"trainable": 10**400}},
        {"parameters": {"trainable": -1}},
    ],
)
def test_figures_that_no_run_can_give_are_refused(change, tmp_path, capsys):
    write(tmp_path / "a", result(**change))
    assert main(["report", str(tmp_path / "a")]) == 2
    assert "result.json' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour is unknown."),
        ({"tasks_done": None}, "tasks_done is None; expected a whole number from 0."),
        ({"accuracy_matrix": [[0.5, 7.0]]}, "accuracy_matrix[0][1] is 7.0; expected a number"),
        ({"accuracy_matrix": [[0.5], [0.5, 0.5]]}, "accuracy_matrix has rows of several lengths"),
        ({"weights": {}}, "weights.sha256 is missing."),
        ({"schema": 99}, "schema is 99; expected a whole number from 1 to 3."),
        ({"timing": {"train": -1.0}}, "timing.train is -1.0; expected a number from 0."),
        ({"after_each_task": []}, "after_each_task has 0 members; expected 2."),
        ({"schema": 3, "average_accuracy": 0.9}, "average_accuracy is 0.9; expected 0.5, which"),
        ({"schema": 3, "forgetting": None}, "forgetting is None; expected 0.4, which the"),
        (
            {"schema": 3, "forward_transfer": 0.5},
            "forward_transfer is 0.5; expected None, which the",
        ),
        (
            {"schema": 3, **WITH_BEFORE, "forward_transfer": 0.5},
            "forward_transfer is 0.5; expected 0.25, which the accuracies give",
        ),
        ({"accuracy_before": [None]}, "accuracy_before has 1 members; expected 2."),
        ({"accuracy_before": [0.5, 0.5]}, "accuracy_before[0] is 0.5; expected null, since"),
        ({"accuracy_before": [None, 7.0]}, "accuracy_before[1] is 7.0; expected a number"),
        (
            {"accuracy_matrix": [[0.5, 0.5]], "tasks_done": 1, "accuracy_before": [None, 0.5]}
            | {"after_each_task": [{"average_accuracy": 0.5}]},
            "accuracy_before[1] is 0.5; expected null, since",
        ),
        ({"schema": 3, "test_examples": [5]}, "test_examples has 1 members; expected 2."),
        (
            {"schema": 3, "after_each_task": [{"average_accuracy": 0.8}] * 2},
            "after_each_task[0].average_accuracy is 0.8; expected 0.9, which",
        ),
    ],
)
def test_the_field_of_a_result_that_is_wrong_is_named_by_its_path(change, message, tmp_path):
    folder = write(tmp_path / "a", result(**change))
    with pytest.raises(UserError, match=re.escape(f"result.json' is damaged: {message}")):
        read_result(RunFolder(folder))


def test_all_that_a_run_writes_is_in_the_schema(trained):
    stored = read_result(RunFolder(trained))
    assert stored == json.loads((trained / "result.json").read_text())


def places(tree, path=()):
    """The paths of all values in a JSON object, those of objects and lists included."""
    yield path
    members = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        members = enumerate(tree)
    for name, value in members:
        yield from places(value, (*path, name))


ODD = [None, True, -1, 0, 3, 10**400, 0.5, -7.5, math.nan, math.inf, "", "x\n|", [], [[]], {}]


@settings(max_examples=200)
@given(draw=st.data())
def test_a_changed_result_is_refused_in_one_line_or_reported(trained, draw):
    changed = json.loads((trained / "result.json").read_text())
    for _ in range(draw.draw(st.integers(1, 3))):
        *above, last = draw.draw(st.sampled_from([path for path in places(changed) if path]))
        owner = functools.reduce(lambda tree, name: tree[name], above, changed)
        if draw.draw(st.booleans()) and isinstance(owner, dict):
            del owner[last]
        else:
            owner[last] = draw.draw(st.sampled_from(ODD))
    try:
        check_result(changed)
        group([changed])
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = []
        report_and_compare(changed)
    assert len(lines) <= 1


def report_and_compare(changed):
    for form in ("markdown", "csv", "latex"):
        table([changed], form)
    caveats([changed])
    reproduce.compare(changed, changed)


def test_names_are_escaped_for_the_format_of_the_table():
    results = [result("a|b <i> 5%_\n", stream="=1+1")]
    markdown = table(results)
    assert r"| a\|b &lt;i&gt; 5%_\n | 50.00 |" in markdown
    assert "**=1+1** (%)" in markdown
    assert table(results, "csv").splitlines()[1].startswith(r"'=1+1,a|b <i> 5%_\n,50.00,")
    assert r"a|b <i> 5\%\_\textbackslash{}n & 50.00 &" in table(results, "latex")
    assert table([result('"a", b')], "csv").splitlines()[1].startswith('letters,"""a"", b",50.00')
