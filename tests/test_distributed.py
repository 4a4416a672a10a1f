"""Several processes: that they give the result of one, that one writes, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import promptax
from promptax import UserError
from promptax.cli import main
from promptax.cli.output import in_flags
from promptax.core import distributed, sharding
from promptax.core.cluster import how_to_join, local_device_ids, visible_gpus
from promptax.core.settings import Distributed

TIMEOUT = 20


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def launch(argv, number, port, *, timeout=TIMEOUT):
    """One of two processes with two devices each."""
    settings = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": number}
    named = {**settings, "timeout": timeout}.items()
    flags = [word for name, value in named for word in (f"--distributed.{name}", f"{value}")]
    devices = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    return subprocess.Popen(
        [sys.executable, "-m", "promptax", *argv, *flags],
        env={**os.environ, "XLA_FLAGS": devices},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(argv):
    """What both print, once both have ended well."""
    port = free_port()
    both = [launch(argv, number, port) for number in (0, 1)]
    printed = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    return [out for out, _ in printed]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def assert_same(folder, wanted):
    ours, theirs = result_of(folder), result_of(wanted)
    assert ours["accuracy_matrix"] == theirs["accuracy_matrix"]
    assert ours["beside"] == theirs["beside"]
    pools = [promptax.load(path).model.pool for path in (folder, wanted)]
    for one, other in zip(*map(jax.tree.leaves, pools), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# Six tasks, whose prompts are chosen by a vote over groups that span both processes.
OPTIONS = "--vote-group 8 --eval.vote-group 8 --epochs 8 --learning-rate 0.02 --mesh.model 2"


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """Arguments of a run, and the folder of it as one process trained it."""
    argv = ["train", "l2p", *tiny.flags(tasks=6), *OPTIONS.split(), "--run"]
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main([*argv, f"{folder}"]) == 0
    return argv, folder


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_and_one_of_them_writes(one, tmp_path):
    argv, wanted = one
    folder = tmp_path / "run"
    first, second = together([*argv, f"{folder}"])
    assert "| l2p |" in first
    assert "l2p" not in second
    assert_same(folder, wanted)
    platform = result_of(folder)["platform"]
    assert (platform["processes"], platform["mesh"]) == (2, {"data": 2, "model": 2})
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert (folder / "log.txt").read_text().count("task 6/6") == 1
    first, second = together(["evaluate", f"{folder}", "--eval.batch-size", "16"])
    last = [f"{100 * accuracy:.2f}" for accuracy in result_of(wanted)["accuracy_matrix"][-1]]
    assert "| " + " | ".join(["instance", *last]) in first
    assert "instance" not in second


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_both_resume(one, tmp_path, victim):
    argv, wanted = one
    folder, port = tmp_path / "run", free_port()
    both = [launch([*argv, f"{folder}"], number, port) for number in (0, 1)]
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / "2").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    both[victim].send_signal(signal.SIGKILL)
    struck = time.monotonic()
    _, err = both[1 - victim].communicate(timeout=240)
    assert time.monotonic() - struck < 2 * TIMEOUT
    assert both[1 - victim].returncode != 0
    assert "promptax: " in err
    assert "lost" in err
    assert "--resume" in err
    both[victim].communicate()
    assert result_of(folder)["tasks_done"] < 6
    together([*argv, f"{folder}", "--resume"])
    assert_same(folder, wanted)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_within_the_timeout(one, tmp_path):
    argv, _ = one
    folder, port = tmp_path / "run", free_port()
    both = [launch([*argv, f"{folder}"], number, port, timeout=8) for number in (0, 1)]
    while not (folder / "checkpoints" / "1").is_dir():
        assert both[0].poll() is None
        time.sleep(0.01)
    both[1].send_signal(signal.SIGSTOP)
    _, err = both[0].communicate(timeout=40)
    both[1].kill()
    both[1].communicate()
    assert both[0].returncode != 0
    assert "has not answered for 8 s" in err


@pytest.mark.slow
def test_what_is_wrong_in_one_process_is_said_by_both(one):
    argv, folder = one
    port = free_port()
    both = [launch([*argv, f"{folder}"], number, port) for number in (0, 1)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "exists: go on with --resume" in err


@pytest.mark.slow
def test_a_process_that_never_comes_ends_the_others_within_the_timeout():
    process = launch(["train", "linear"], 0, free_port(), timeout=2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "all 2 processes of the job did not meet at 127.0.0.1:" in err
    assert "within 2 s" in err
    assert len(err.splitlines()) <= 3


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_named():
    port = free_port()
    process = launch(["evaluate", "runs"], 1, port, timeout=2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"did not meet at 127.0.0.1:{port} within 2 s" in err


@pytest.mark.slow
def test_without_a_job_to_join_the_flags_are_named():
    command = [sys.executable, "-m", "promptax", "train", "linear", "--distributed"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "give --distributed.coordinator" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--distributed.coordinator host:1", "go together"),
        ("--distributed.process 0", "go together"),
        (
            "--distributed.coordinator host --distributed.processes 2 --distributed.process 0",
            "PORT",
        ),
        ("--distributed.coordinator :1 --distributed.processes 2 --distributed.process 0", "PORT"),
        ("--distributed.coordinator h:1 --distributed.processes 0 --distributed.process 0", "1"),
        ("--distributed.coordinator h:1 --distributed.processes 2 --distributed.process 2", "to 1"),
        ("--distributed.timeout 0", "at least 1 second"),
        ("--mesh.data 9", "there are 8"),
        ("--mesh.model 3", "divisor"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, words, capsys):
    assert main(["train", "linear", *flags.split()]) == 2
    assert words in capsys.readouterr().err


def test_alone_a_process_is_the_writer_and_waits_for_nobody():
    with distributed.joined(Distributed()):
        assert distributed.is_writer()
        done = []
        distributed.on_writer(lambda: done.append(1))
        assert done == [1]

        def fail():
            raise UserError("full")

        with pytest.raises(UserError, match="full"):
            distributed.on_writer(fail)


def test_processes_must_use_all_devices_and_split_blocks_within_one(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    with pytest.raises(UserError, match="leaves some of the 8 devices of 2 processes out"):
        sharding.make_mesh(2)
    with pytest.raises(UserError, match=r"make_mesh\(model=4\) does not divide the 2 devices"):
        sharding.make_mesh(None, 4)


# --- what schedulers say ---

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
OMPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}
ENVIRONMENTS = {
    "no scheduler: JAX takes all": ({}, 8, None),
    "no GPUs": ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 0, None),
    "Slurm, one task on a node": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
        8,
        [0, 1, 2, 3, 4, 5, 6, 7],
    ),
    "Slurm, a single task": (
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
        4,
        [0, 1, 2, 3],
    ),
    "Slurm, a task for each GPU": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"},
        8,
        [5],
    ),
    "Slurm, two tasks on a node of 8": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"},
        8,
        [4, 5, 6, 7],
    ),
    "Slurm, other numbers of tasks on the last node": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"},
        4,
        [0, 1, 2, 3],
    ),
    "Slurm shows each task its own GPUs": (
        {
            **SLURM,
            "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
            "SLURM_LOCALID": "1",
            "SLURM_GPUS_PER_TASK": "2",
        },
        2,
        [0, 1],
    ),
    "Slurm shows each task one GPU": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "7"},
        1,
        [0],
    ),
    "Slurm, the older variable": ({**SLURM, "SLURM_TASKS_PER_NODE": "1(x2)"}, 2, [0, 1]),
    "Slurm, no step": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, 8, None),
    "Open MPI, one process": (
        {**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        2,
        [0, 1],
    ),
    "Open MPI, four processes": (
        {**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"},
        4,
        [3],
    ),
    "another MPI": ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 4, None),
    "the user says": ({**SLURM, "JAX_LOCAL_DEVICE_IDS": "0,1"}, 8, None),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_process_uses_its_share_of_the_gpus_of_its_node(name):
    environ, gpus, wanted = ENVIRONMENTS[name]
    assert local_device_ids(environ, gpus) == wanted


def test_gpus_that_cannot_be_shared_are_refused():
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}
    with pytest.raises(UserError, match="3 processes on a node cannot share its 8 GPUs evenly"):
        local_device_ids(environ, 8)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "start with Slurm, GKE, Cloud TPU or Open MPI"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, "SLURM_NTASKS, SLURM_LOCALID not set"),
        ({"SLURM_JOB_ID": "7"}, "with srun"),
        (OMPI, "--distributed.processes $OMPI_COMM_WORLD_SIZE"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "--distributed.process $PMI_RANK"),
    ],
)
def test_what_is_missing_to_find_the_others_is_named(environ, says):
    assert says in in_flags(how_to_join(environ))


@pytest.mark.parametrize(
    ("chosen", "count"), [(None, 3), ("0,2", 2), ("GPU-8932f937", 1), ("", 0), ("-1", 0)]
)
def test_visible_gpus_are_counted_without_jax(chosen, count, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible_gpus(environ, tmp_path) == count


def test_jax_is_given_the_devices_and_finds_the_rest_by_itself(monkeypatch):
    """What Slurm says of the others is JAX's to read; that of a single task is all its devices."""
    calls = []
    record = lambda *place, **options: calls.append((place, options["local_device_ids"]))
    monkeypatch.setattr(jax.distributed, "initialize", record)
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    distributed._connect(Distributed(on=True))
    assert calls == [((None, None, None), [0, 1, 2, 3])]
