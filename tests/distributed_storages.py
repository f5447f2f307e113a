"""What two ranks check of checkpoints whose states are in other dtypes than those of the optimizer that loads them."""

import torch
import torch.distributed as dist
from distributed_workers import (
    FORMS,
    STEPS,
    assert_equal,
    check,
    drive,
    load,
    optimizer,
    results,
    save,
    sharded,
    two,
)
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import fastopt.torch
from fastopt.rules import RULES

LARGE = {"min_quantized_size": 20}
STORAGES = {
    "torch": lambda rule: {},  # its own optimizer
    "float32": lambda rule: {},
    "bfloat16": lambda rule: {"state_dtype": "bfloat16", "stochastic_rounding": False, **LARGE},
    "float16": lambda rule: {"state_dtype": torch.float16, **LARGE},
    "dict": lambda rule: {"state_dtype": {rule.states[0]: torch.bfloat16}, **LARGE},
}
LATER = ["bfloat16", "float16", "torch", "dict", "float32"]  # by default each becomes another one
OF_RULES = ["momentum", "adamw_amsgrad"]  # of one state, and of several with a count: what is converted knows no rule


def stored(kind, net, storage):
    """An optimizer whose states are stored so."""
    if storage == "torch":
        return optimizer(torch.optim, kind, net.parameters())
    return optimizer(fastopt.torch, kind, net.parameters(), **STORAGES[storage](RULES[kind]))


def assert_converted(loaded, saved, net, kind, storage):
    """Assert that all that was saved is there, rounded to the dtypes that an optimizer has."""
    given = STORAGES[storage](RULES[kind]).get("state_dtype", torch.float32)
    dtypes = given if isinstance(given, dict) else dict.fromkeys(RULES[kind].states, given)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert loaded.keys() == saved.keys()
    for name, value in loaded.items():
        param, _, state = name.partition(": ")
        dtype = dtypes.get(state, torch.float32) if sizes[param] >= LARGE["min_quantized_size"] else torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert value.dtype == dtype, name
        assert torch.equal(value, saved[name].to(dtype)), name


@check(OF_RULES, STORAGES, LATER, FORMS, usual=["momentum", "torch", "bfloat16", "nested"])
def checkpoint_of_storages(kind, before, after, form):
    """Any into any, also those of torch.optim; the training goes on as after `load_state_dict`.

    What a checkpoint lacks of an optimizer's options makes the default planner fail; else they stay.
    """
    net, other = sharded(two()), sharded(two(), seed=4)
    opt, second = stored(kind, net, before), stored(kind, other, after)
    drive(net, opt, STEPS[:3])
    path = f"{kind}-{before}-{after}-{form}"
    save(path, net, opt, FORMS[form])
    load(path, other, second, FORMS[form], DefaultLoadPlanner(allow_partial_load=True))
    assert_converted(results(other, second), results(net, opt), net, kind, after)

    direct = stored(kind, net, after)
    direct.load_state_dict(opt.state_dict())
    drive(net, direct, STEPS[3:6])
    drive(other, second, STEPS[3:6])
    assert_equal(results(other, second), results(net, direct))


@check(["bfloat16", "int8"], FORMS, exhaustive=True)
def checkpoint_of_random_bits(storage, form):
    """Rounding is stochastic by default here: it goes on as without the checkpoint, which brings count and seed.

    States in 8 bits are saved as float32, and encoded again as the same codes.
    """
    net, other = sharded(two()), sharded(two(), seed=4)
    opt, second = (
        optimizer(fastopt.torch, "adamw_amsgrad", each.parameters(), state_dtype=storage, seed=seed, **LARGE)
        for each, seed in ((net, 7), (other, 8))
    )
    drive(net, opt, STEPS[:3])
    path = f"random-{storage}-{form}"
    save(path, net, opt, FORMS[form])
    load(path, other, second, FORMS[form], DefaultLoadPlanner())
    assert (second.param_groups[0]["seed"], second.param_groups[0]["step"]) == (7, 3)
    drive(net, opt, STEPS[3:6])
    drive(other, second, STEPS[3:6])
    assert_equal(results(other, second), results(net, opt))


@check(OF_RULES, ["torch", "float32", "bfloat16", "float16"], LATER, usual=["momentum", "torch", "bfloat16"])
def broadcast_of_storages(kind, before, after):
    """The whole state on the first rank alone, and from there to all.

    A dict of dtypes goes into an optimizer with a dict alone: torch mixes up what is nested with what is not.
    """
    net, other = sharded(two()), sharded(two(), seed=4)
    opt, second = stored(kind, net, before), stored(kind, other, after)
    drive(net, opt, STEPS[:3])
    saved = get_optimizer_state_dict(net, opt, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert bool(saved) == (dist.get_rank() == 0)
    scatter = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(other, second, saved, options=scatter)
    set_model_state_dict(other, net.state_dict())
    assert_converted(results(other, second), results(net, opt), net, kind, after)
