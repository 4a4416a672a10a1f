"""What is published: the contents of wheel and sdist, and that the wheel runs by itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def tracked(*folders: str) -> set[str]:
    """The files under version control, by their paths from the root of the repository."""
    command = ["git", "ls-files", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in listed.stdout.split("\0") if path and (ROOT / path).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the tracked files, and the wheel that is made from the sdist."""
    checkout = tmp_path_factory.mktemp("checkout")
    for path in tracked():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_sdist_holds_what_is_under_version_control(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isfile()]
    found = {str(name.relative_to(name.parts[0])) for name in names}
    assert found == tracked() | {"PKG-INFO"}


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {path.removeprefix("src/") for path in tracked("src/promptax")}
    for expected in ("py.typed", "data/bundled/glyph_vit.npz", "data/bundled/LICENSES.md"):
        assert f"promptax/{expected}" in names


def test_the_wheel_names_its_licences_and_how_it_is_called(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        metadata = HeaderParser().parsestr(archive.read(files["METADATA"]).decode())
        scripts = archive.read(files["entry_points.txt"]).decode()
        licences = metadata.get_all("License-File", [])
        for path in licences:
            assert archive.read(files[f"licenses/{path}"]) == (ROOT / path).read_bytes()
    assert licences == ["LICENSE", "src/promptax/data/bundled/LICENSES.md"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "promptax = promptax.__main__:main" in scripts


def test_the_first_command_of_the_readme_works_with_the_wheel_alone(wheel, tmp_path):
    """In an environment that has only what the wheel asks for."""
    start = re.search(
        r"^python3 -m venv .venv && (.*train l2p)$", (ROOT / "README.md").read_text(), re.M
    )
    assert start is not None
    install, train = start[1].split(" && ")
    assert install.endswith(" .")
    venv.create(tmp_path / ".venv", with_pip=True)
    # Neither the package of this checkout nor the devices that the other tests pretend to have.
    ours = ("PYTHONPATH", "XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    for line in (f"{install.removesuffix('.')}'{wheel}'", f"{train} --epochs 1"):
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["average_accuracy"] > 0.3
