"""The code in docs/recipes.md runs as printed."""

import pkgutil
import re

import pytest
import torch
from pages import blocks

import fastopt.torch

PAGE = "docs/recipes.md"
SETUP, *RECIPES = blocks(PAGE)
COMPILED = [code for code in RECIPES if re.search("^from (timm|fastai)", code, re.MULTILINE)]  # they need torchvision
PARTS = [code for code in RECIPES if code.startswith("def ")]  # of a class


def first_line(code):
    """A recipe's name."""
    return code.strip().splitlines()[0]


def run(code):
    """Run a recipe after the lines that stand for the model and its data."""
    names = {}
    exec(compile(SETUP, PAGE, "exec"), names)
    exec(compile(code, PAGE, "exec"), names)
    return names


@pytest.mark.clients
@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("code", [code for code in RECIPES if code not in COMPILED + PARTS], ids=first_line)
def test_recipes_run_as_printed(code, capsys, monkeypatch, tmp_path):
    """Each by itself, with what it writes in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.AdamW)  # which one recipe replaces
    run(code)
    assert capsys.readouterr().out


@pytest.mark.parametrize("code", COMPILED, ids=first_line)
def test_recipes_that_need_torchvision_compile(code):
    compile(code, PAGE, "exec")


def test_a_part_of_a_class():
    """A method by itself."""
    (code,) = PARTS
    names = run(code)
    (opt,), (scheduler,) = names["configure_optimizers"](names["model"])
    assert isinstance(opt, fastopt.torch.AdamW)
    assert scheduler["scheduler"].get_last_lr() == [names["schedule"](0)]


def test_names_in_files():
    """Lead to the class."""
    paths = re.findall(r"(?:_target_|class_path): (\S+)", "".join(blocks(PAGE, "yaml")))
    assert [pkgutil.resolve_name(path) for path in paths] == [fastopt.torch.AdamW] * 2
