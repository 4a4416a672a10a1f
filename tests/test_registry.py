"""Methods by name: a file in the package, and a user's own file."""

import sys

import pytest
import toy

import promptax.methods
from promptax import UserError
from promptax.methods import registry
from promptax.methods.registry import builtin_methods, load_method, method_class, method_name

METHOD = """
from promptax.methods import AbstractMethod, Prediction

class {name}(AbstractMethod):
    def init(self, backbone, stream, *, key):
        return backbone, None

    def predict(self, model, state, images, query):
        return Prediction(query)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder whose files are taken for files of `promptax.methods`."""
    monkeypatch.setattr(promptax.methods, "__path__", [*promptax.methods.__path__, str(tmp_path)])
    builtin_methods.cache_clear()
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"promptax.methods.{file.stem}", None)
        promptax.methods.__dict__.pop(file.stem, None)
    builtin_methods.cache_clear()


def test_a_file_in_the_package_is_found_by_its_name(package):
    (package / "spare.py").write_text(METHOD.format(name="Spare"))
    assert method_class("spare").__name__ == "Spare"
    assert method_name(method_class("spare")()) == "spare"
    assert load_method("spare") == "spare"
    assert list(builtin_methods()) == sorted(builtin_methods())
    assert {"l2p", "linear"} < set(builtin_methods())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("from promptax.methods import L2P", "none"),
        (METHOD.format(name="One") + METHOD.format(name="Two"), "One, Two"),
    ],
    ids=["none", "two"],
)
def test_a_file_in_the_package_has_one_method(package, source, words):
    (package / "spare.py").write_text(source)
    words = rf"methods/spare\.py should define exactly one method, but defines {words}: move"
    with pytest.raises(UserError, match=words):
        builtin_methods()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a method, in a process that has loaded none yet."""
    monkeypatch.setattr(registry, "_own_methods", {})
    file = tmp_path / "own.py"
    file.write_text(METHOD.format(name="Own"))
    return file


def test_a_method_of_a_users_file_goes_by_file_and_class(own):
    with pytest.raises(UserError, match=r"if you name it: add `--method path/to/own\.py:"):
        method_class("own.py:Own")
    for _ in range(2):
        assert load_method(f"{own}:Own") == "own.py:Own"
    kind = method_class("own.py:Own")
    assert kind.__name__ == "Own"
    assert method_name(kind()) == "own.py:Own"
    assert method_name(toy.Pixels()) == "Pixels"


def test_a_method_that_a_users_file_imports_can_be_named_too(own):
    own.write_text("from promptax.methods import NCM")
    for _ in range(2):
        assert load_method(f"{own}:NCM") == "own.py:NCM"


@pytest.mark.parametrize(
    ("given", "source", "words"),
    [
        ("other.py:Own", "", r"the method file '.*other\.py' does not exist"),
        ("own.py", None, r"say which class of '.*own\.py' is the method: .*own\.py:Own\.$"),
        ("own.py", "import promptax\nL = promptax.methods.L2P", r"own\.py' defines no method"),
        ("own.py:Ower", None, r"'.*own\.py' has no class 'Ower'\. It defines Own\."),
        ("own.py:Own", "x = 1", r"'.*own\.py' has no class 'Own'\.$"),
        ("own.py:Own", "Own = 1", r"'Own' in '.*own\.py' is not a method: .* subclass of"),
        ("own.py:Own", "class Own: ...", r"'Own' in '.*own\.py' is not a method"),
        (
            "own.py:Own",
            "from promptax.methods import AbstractMethod as Own",
            r"'Own' in '.*own\.py' does not define init, predict\.",
        ),
        ("own.py:Own", "x = 1\ndef f(:", r"cannot be run: SyntaxError in line 2: "),
        ("own.py:Own", "x = 1\n\n1 / 0", r"cannot be run: ZeroDivisionError in line 3: division"),
        (
            "own.py:Own",
            "def f():\n    import nowhere\nf()",
            r"cannot be run: ModuleNotFoundError in line 2: No module named 'nowhere'",
        ),
    ],
)
def test_files_and_classes_that_are_no_method_are_user_errors(own, given, source, words):
    if source is not None:
        own.write_text(source)
    with pytest.raises(UserError, match=words):
        load_method(f"{own.parent}/{given}")


def test_a_file_that_could_not_be_run_can_be_mended(own):
    own.write_text("1 / 0")
    with pytest.raises(UserError, match="cannot be run"):
        load_method(f"{own}:Own")
    own.write_text(METHOD.format(name="Own") + "# mended\n")
    assert load_method(f"{own}:Own") == "own.py:Own"


def test_two_files_cannot_have_a_method_of_the_same_name(own, tmp_path):
    other = tmp_path / "folder" / "own.py"
    other.parent.mkdir()
    other.write_text(own.read_text())
    load_method(f"{own}:Own")
    with pytest.raises(UserError, match=rf"two methods are called own\.py:Own: the one in '{own}'"):
        load_method(f"{other}:Own")


def test_a_name_that_there_is_not_is_a_user_error():
    with pytest.raises(UserError, match="l3p"):
        load_method("l3p")
