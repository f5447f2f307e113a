"""The docstrings that `help` shows to users."""

import ast
import inspect
import pydoc
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import assert_passes

import fastopt
import fastopt.torch
from fastopt.faces import ARRAYS, CALL, TORCH, described
from fastopt.options import ADDED_DEFAULTS, ADDED_OPTIONS, HYPERPARAMETERS, OPTIONS, SCHEDULABLE, STAGE_OPTIONS
from fastopt.rules import FAMILIES
from fastopt.schedules import SCHEDULES

CLASSES = tuple(FAMILIES)
CALLS = tuple(name for name, call in vars(fastopt.fused).items()
              if getattr(call, "__module__", "") == "fastopt.fused" and not name.startswith("_"))  # fmt: skip
FACES = {f"{module.__name__}.{name}": getattr(module, name)
         for module, names in ((fastopt, CLASSES), (fastopt.fused, CALLS), (fastopt.torch, CLASSES))
         for name in names}  # fmt: skip
every_face = pytest.mark.parametrize("name", FACES)

SOURCES = {path: ast.parse(path.read_text(encoding="utf-8"))
           for path in Path(fastopt.__file__).parent.rglob("*.py")}  # fmt: skip


def sections(face):
    """Of a docstring, by headline: ``{headline: {entry's first line: its text in one line}}``, without the examples."""
    found = {}
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(face), flags=re.MULTILINE)
    for headline, text in zip(parts[1::2], parts[2::2], strict=True):
        entries = re.findall(r"^(\S.*)\n((?:    .*\n?)+)", text, re.MULTILINE)
        found[headline] = {head: " ".join(body.split()) for head, body in entries}
    return found


@pytest.mark.parametrize("cls", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedules_signature_has_short_names(cls):
    """It does not show how fields are checked."""
    assert "Annotated" not in str(inspect.signature(cls))


@every_face
def test_parameters_are_those_of_the_signature(name):
    """All of them, in order, with their defaults; those that may be schedules by the signature are so by the text."""
    signature = inspect.signature(FACES[name]).parameters
    entries = [head.partition(" : ") for head in sections(FACES[name])["Parameters"]]
    assert [entry for entry, _, _ in entries] == [*signature]
    for parameter, _, kind in entries:
        default, annotation = signature[parameter].default, signature[parameter].annotation
        if default is inspect.Parameter.empty or default is None:
            assert "default" not in kind
            assert kind.endswith(", optional") == (default is None)
        else:
            assert ast.literal_eval(kind.partition(", default ")[2]) == default
        assert ("schedule" in kind) == ("Scheduled" in annotation or "Betas" in annotation)
        assert "schedule" not in kind or parameter in SCHEDULABLE


@pytest.mark.parametrize("name", [name for name in FACES if "fused" not in name])
def test_groups_have_the_options_of_the_signature(name):
    """The dict of defaults that a constructor writes out forgets none; those that all have show once in use."""
    given = torch.ones(1) if "torch" in name else np.ones(1)
    optimizer = FACES[name]([given])
    group = optimizer.param_groups[0]
    assert not {*ADDED_OPTIONS} & {*group}
    for option, parameter in inspect.signature(FACES[name]).parameters.items():
        shown = getattr(optimizer, option) if option in STAGE_OPTIONS else group.get(option, ADDED_DEFAULTS.get(option))
        assert option == "params" or shown == parameter.default


def test_signatures_of_a_users_subclass():
    """A constructor of its own is shown as it is written, or else the one that it inherits."""

    class Same(fastopt.SGD):
        pass

    class Other(fastopt.torch.SGD):
        def __init__(self, params, scale=1.0, **more):
            super().__init__(params, lr=0.1 * scale, **more)

    assert inspect.signature(Same) == inspect.signature(fastopt.SGD)
    assert str(inspect.signature(Other)) == "(params, scale=1.0, **more)"
    assert {name: inspect.signature(Same).parameters[name].default for name in ADDED_DEFAULTS} == ADDED_DEFAULTS
    assert Other([torch.ones(1)], max_grad_norm=0.5).max_grad_norm == 0.5


@every_face
def test_help_has_formulas_options_and_errors(name):
    """Every option is explained in place, and no line is too long for a wide terminal."""
    shown = pydoc.plain(pydoc.render_doc(FACES[name]))
    assert " <- " in shown or f"the formula is that of `fastopt.{name.rpartition('.')[2].title()}`" in shown
    assert not re.search(r"\{(options|errors|formulas)\}|As for `", FACES[name].__doc__)
    for headline in ("Parameters", "Raises"):
        assert all(sections(FACES[name])[headline].values())
    assert "TypeError, ValueError" in sections(FACES[name])["Raises"]
    assert max(map(len, FACES[name].__doc__.splitlines())) <= 120


@pytest.mark.parametrize("name", CLASSES)
def test_classes_for_torch_have_the_formulas_of_those_for_arrays(name):
    ours, torchs = (inspect.getdoc(getattr(module, name)).split("\n\n    ")[1] for module in (fastopt, fastopt.torch))
    assert ours.partition("\n\n")[0] == torchs.partition("\n\n")[0]


def written(docstring):
    """What a docstring in the source says of single parameters."""
    marked = re.search(r"^    \{options\}\n((?:    .+\n)*)", docstring, re.MULTILINE)
    return re.findall(r"^    (\w+)\n((?:     .+\n)+)", marked[1], re.MULTILINE) if marked else []


def docstrings():
    """Those of all faces, as the sources have them."""
    modules = [
        SOURCES[Path(module.__file__)] for module in (fastopt.optimizers, fastopt.fused, fastopt.torch.optimizers)
    ]
    nodes = [node for module in modules for node in module.body if getattr(node, "decorator_list", None)]
    return [(node.name, ast.get_docstring(node, clean=False)) for node in nodes]


def test_what_is_special_is_shown():
    """Whatever a docstring in the source says of a parameter ends that parameter's text, for torch too."""
    found = [(name, *entry) for name, text in docstrings() for entry in written(text)]
    assert found
    for name, parameter, text in found:
        shown = [
            body
            for path, face in FACES.items()
            if path.endswith(f".{name}")
            for head, body in sections(face)["Parameters"].items()
            if head.startswith(f"{parameter} : ")
        ]
        assert shown, (name, parameter)
        assert all(body.endswith(" ".join(text.split())) for body in shown), (name, parameter)


@every_face
def test_what_is_cited_is_listed(name):
    """Also where a text comes from another docstring."""
    assert {*re.findall(r"\[(\d)\]_", FACES[name].__doc__)} <= {*re.findall(r"\.\. \[(\d)\] ", FACES[name].__doc__)}


def test_every_text_stands_once():
    """In all sources, whatever way it is broken into lines there."""
    options = {**OPTIONS, **ADDED_OPTIONS}.values()
    texts = [text for option in options for text in (option.text, option.scheduled, *option.of.values())]
    for face in (ARRAYS, CALL, TORCH):
        texts += [argument.text for argument in face.arguments.values()]
        texts += [*face.errors.values(), *face.also.values()]
    texts += [text for _, docstring in docstrings() for _, text in written(docstring)]
    constants = [node.value for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(" ".join(constant.split()) for constant in constants if isinstance(constant, str))
    for text in {" ".join(text.split()) for text in texts if text}:
        assert said.count(text) <= 1, text


def test_every_option_is_checked_and_used():
    """The table of options has no entry that no optimizer takes."""
    assert {*OPTIONS, *ADDED_OPTIONS} == {*HYPERPARAMETERS}
    assert {*HYPERPARAMETERS} <= {option for face in FACES.values() for option in inspect.signature(face).parameters}


def face(lr=1e-8, *, maximize=False):
    """Do nothing.

    Parameters
    ----------
    {options}
    maximize
        Whatever
        that is.

    Raises
    ------
    {errors}
    """


@pytest.mark.parametrize("doc", [face.__doc__, inspect.cleandoc(face.__doc__)], ids=["as written", "dedented"])
def test_docstrings_are_completed(doc, monkeypatch):
    """From Python 3.13 on, they have no margin."""
    monkeypatch.setattr(face, "__doc__", doc)
    assert described(CALL)(face) is face
    assert inspect.getdoc(face) == inspect.cleandoc(
        """Do nothing.

        Parameters
        ----------
        lr : float, default 1e-8
            Learning rate, 0 or more.
        maximize : bool, default False
            Ascend instead: ``-g`` is used for g. Whatever that is.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; nothing has changed then.
        """
    )


def test_without_docstrings(tmp_path, monkeypatch):
    """With ``python -OO`` there are none, and nothing replaces them."""
    script = """
        import fastopt

        print("passed" if fastopt.Adam.__doc__ is fastopt.fused.adam.__doc__ is None else "there are some")
    """
    assert_passes(script, tmp_path, PYTHONOPTIMIZE="2")
    monkeypatch.setattr(face, "__doc__", None)
    assert described(TORCH, like=face)(face).__doc__ is None
