"""State dicts and options as read back from files: npz, JSON and configurations."""

import json
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

import fastopt
from fastopt.schedules import Cosine, Plateau, Warmup

F32 = np.float32


class Configured(Sequence):
    """A list of a configuration, like OmegaConf's: a sequence of a type of its own."""

    def __init__(self, *entries):
        self.entries = entries

    def __getitem__(self, index):
        return self.entries[index]

    def __len__(self):
        return len(self.entries)


def trained(steps=2):
    """An optimizer over nested parameters, a 0-d one and a flat list, with a schedule, after some steps."""
    rng = np.random.default_rng(3)
    params = {"enc": {"w": rng.standard_normal((2, 3)), "b": np.ones(())}, "d": [np.ones(2)]}
    groups = [{"params": params, "lr": Warmup(Cosine(0.1, 10), 3)}, {"params": [np.ones(2, F32)], "maximize": True}]
    opt = fastopt.Adam(groups, lr=Plateau(0.3), betas=(0.8, 0.9), amsgrad=True)
    for _ in range(steps):
        opt.step([{"enc": {"w": np.ones((2, 3)), "b": np.ones(())}, "d": None}, [np.ones(2, F32)]])
    return opt


def split(key):
    """A key of a state, from its text: an index as a number."""
    return int(key) if key.isdigit() else key


def whole(state_dict, file):
    """One entry for each of the two of a state dict."""
    np.savez(file, **state_dict)
    return np.load(file, allow_pickle=True)


def packed(state_dict, file):
    """All in one entry, as it is read."""
    np.savez(file, optimizer=state_dict)
    return np.load(file, allow_pickle=True)["optimizer"]


def by_parameter(state_dict, file):
    """An entry for each parameter, and the groups."""
    np.savez(file, groups=state_dict["param_groups"], **{f"of {key}": e for key, e in state_dict["state"].items()})
    loaded = np.load(file, allow_pickle=True)
    state = {split(name[3:]): loaded[name] for name in loaded if name != "groups"}
    return {"state": state, "param_groups": loaded["groups"]}


def by_array(state_dict, file):
    """An entry for each array, count and option, so that nothing is pickled; schedules as JSON."""
    flat = {f"{key}/{name}": value for key, entry in state_dict["state"].items() for name, value in entry.items()}
    for number, group in enumerate(state_dict["param_groups"]):
        keys = np.array([str(key) for key in group["params"]])
        group = {**group, "params": keys, "schedules": json.dumps(group["schedules"])}
        flat |= {f"group {number}/{name}": value for name, value in group.items()}
    np.savez(file, **flat)
    loaded = np.load(file)
    state, groups = {}, [{}, {}]
    for path in loaded:
        key, name = path.split("/")
        if key.startswith("group"):
            groups[int(key[5:])][name] = loaded[path]
        else:
            state.setdefault(split(key), {})[name] = loaded[path]
    groups[1]["params"] = np.array([3])  # an index
    for group in groups:
        group["schedules"] = json.loads(str(group["schedules"]))
    return {"state": state, "param_groups": np.array(groups, object)}


@pytest.mark.parametrize("way", [whole, packed, by_parameter, by_array])
def test_state_dicts_through_npz(way, tmp_path):
    """What comes back loads as it is, whatever of it NumPy has turned into arrays."""
    opt, resumed = trained(), trained(steps=0)
    saved = opt.state_dict()
    resumed.load_state_dict(way(opt.state_dict(), tmp_path / "state.npz"))
    assert repr(resumed.state_dict()) == repr(saved)
    assert type(resumed.state["enc.w"]["step"]) is int
    assert resumed.state["enc.b"]["exp_avg"].shape == ()


def through_json(state_dict):
    """A state dict as JSON gives it back: indices are text, betas a list; arrays are made of lists again."""
    loaded = json.loads(json.dumps(state_dict, default=lambda array: array.tolist()))
    for key, entry in state_dict["state"].items():
        saved = loaded["state"][str(key)]
        saved |= {name: np.asarray(saved[name], array.dtype) for name, array in entry.items() if name != "step"}
    return loaded


def test_state_dicts_through_json():
    """Names stay, and indices are found again by their text, whether all have a state or not."""
    opt, resumed = trained(), trained(steps=0)
    saved = opt.state_dict()
    loaded = through_json(saved)
    assert "3" in loaded["state"]
    resumed.load_state_dict(loaded)
    assert repr(resumed.state_dict()) == repr(saved)
    del saved["state"]["enc.b"], loaded["state"]["enc.b"]
    resumed.load_state_dict(loaded)
    assert resumed.state.keys() == saved["state"].keys()
    assert loaded["state"].keys() == {"enc.w", "3"}


def test_indices_as_text_that_are_not_these():
    """Another's, one beside a number, and one that reads like a name, which could be either."""
    for make, change in (
        (lambda: fastopt.SGD([np.ones(2)], momentum=0.9), lambda entry: {"1": entry}),
        (lambda: fastopt.SGD([np.ones(2)], momentum=0.9), lambda entry: {"00": entry}),
        (lambda: fastopt.SGD([np.ones(2)], momentum=0.9), lambda entry: {"0": entry, 0: entry}),
        (lambda: fastopt.SGD([{"params": [np.ones(2), np.ones(2)]}, {"params": {"0": np.ones(2)}}], momentum=0.9),
         lambda entry: {"0": entry, "1": entry}),
    ):  # fmt: skip
        opt = make()
        changed = opt.state_dict()
        changed["state"] = change({"step": 1, "momentum_buffer": np.ones(2)})
        with pytest.raises(ValueError, match="the state dict has state for"):
            opt.load_state_dict(changed)
        assert dict(opt.state) == {}


def test_what_files_cannot_bring():
    """A count that is no whole number, a dict that is none, in arrays."""
    for path, value in (
        (("state", 0, "step"), np.array(1.5)),
        (("state", 0, "step"), np.array([1])),
        (("state", 0, "step"), np.array("1")),
        (("state", 0), np.array("nothing", object)),
        (("state",), np.array(None, object)),
        (("param_groups",), np.array({}, object)),
        (("param_groups", 0, "lr"), np.array([0.1])),
        (("param_groups", 0, "maximize"), np.array(2)),
        (("param_groups", 0, "params"), np.array(["0"])),
    ):
        opt = fastopt.SGD([np.ones(2)], momentum=0.9)
        opt.step([np.ones(2)])
        changed = opt.state_dict()
        target = changed
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        before = repr(opt.state_dict())
        with pytest.raises((TypeError, ValueError)):
            opt.load_state_dict(changed)
        assert repr(opt.state_dict()) == before


@pytest.mark.parametrize(
    "betas",
    [
        [0.75, 0.5], (0.75, 0.5), np.array([0.75, 0.5]), np.array([0.75, 0.5], F32), Configured(0.75, 0.5),
        (F32(0.75), Fraction(1, 2)), [np.array(0.75), np.array(0.5)],
    ],
    ids=["list", "tuple", "array", "float32", "configured", "numbers", "0-d arrays"],
)  # fmt: skip
def test_betas(betas):
    """Any sequence of two numbers; two floats come out."""
    group = fastopt.Adam(np.ones(2), betas=betas).param_groups[0]
    assert repr(group["betas"]) == "(0.75, 0.5)"
    group["betas"] = (0.1, 0.2)
    group["betas"] = betas
    assert repr(group["betas"]) == "(0.75, 0.5)"
    fastopt.fused.adam(np.ones(2), np.ones(2), np.zeros(2), np.zeros(2), lr=0.1, step=np.array(1), betas=betas)


@pytest.mark.parametrize(
    "betas",
    [np.array(0.9), np.ones((2, 1)) / 2, np.array([0.9]), np.array([0.9, 1.0]), Configured(0.9), b"ab",
     np.array(["0.9", "0.99"]), {0.9, 0.99}, iter([0.9, 0.99])],
    ids=["0-d", "2-d", "one in an array", "out of range", "one", "bytes", "words", "set", "iterator"],
)  # fmt: skip
def test_what_betas_cannot_be(betas):
    """Not two, not numbers, without an order."""
    with pytest.raises((TypeError, ValueError), match=r"betas|beta parameter"):
        fastopt.Adam(np.ones(2), betas=betas)


@pytest.mark.parametrize("flag", [1, True, np.True_, np.int64(1), np.array(True), np.array(1), np.array(True, object)])
def test_flags(flag):
    """1 and 0 where NumPy, a shell or a configuration says so."""
    group = fastopt.SGD(np.ones(2), maximize=flag).param_groups[0]
    assert group["maximize"] is True
    group["maximize"] = 0
    assert group["maximize"] is False
    assert fastopt.schedules.Cosine(0.1, 10, periodic=flag).periodic is True
