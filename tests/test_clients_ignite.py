"""fastopt.torch in ignite, beside torch.optim."""

import pytest
import torch
from client_models import OPTIONS, assert_alike, batches, network
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("offline")]
SCHEDULE = Warmup(Cosine(1e-2, steps=15), steps=3)


def handlers():
    """Those of ignite that set a learning rate, and a schedule's scheduler in its wrapper."""
    from ignite import handlers

    return {
        "linear": lambda optimizer: handlers.LinearCyclicalScheduler(optimizer, "lr", 1e-2, 1e-3, 18),
        "cosine": lambda optimizer: handlers.CosineAnnealingScheduler(optimizer, "lr", 1e-2, 1e-3, 18),
        "piecewise": lambda optimizer: handlers.PiecewiseLinear(optimizer, "lr", [(2, 1e-2), (12, 1e-3)]),
        "warm-up": lambda optimizer: handlers.create_lr_scheduler_with_warmup(
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), 1e-3, 5
        ),
        "schedule": lambda optimizer: handlers.LRScheduler(SCHEDULE.torch_scheduler(optimizer)),
    }


def trainer(model, optimizer, handler=None, **options):
    """ignite's own trainer, with a handler of the rate."""
    from ignite.engine import Events, create_supervised_trainer

    engine = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss, **options)
    if handler is not None:
        engine.add_event_handler(Events.ITERATION_STARTED, handler)
    return engine


def run(engine, epochs=3):
    """Train; return the losses."""
    from ignite.engine import Events

    losses = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output))
    engine.run(batches(), max_epochs=epochs)
    return losses


@pytest.mark.parametrize("name", ["linear", "cosine", "piecewise", "warm-up", "schedule"])
def test_handlers_of_the_rate(name):
    def train(library):
        model = network()
        optimizer = library.AdamW(model.parameters(), **OPTIONS)
        return run(trainer(model, optimizer, handlers()[name](optimizer))), model

    assert_alike(train)


@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 2}, {"amp_mode": "amp", "scaler": True, "device": "cpu"}], ids=str
)
def test_options_of_its_trainer(options):
    def train(library):
        model = network()
        chosen = options | ({"scaler": torch.amp.GradScaler("cpu")} if "scaler" in options else {})
        return run(trainer(model, library.AdamW(model.parameters(), **OPTIONS), **chosen)), model

    assert_alike(train)


def test_resuming(tmp_path):
    """From its Checkpoint, to the bit."""
    from ignite.engine import Events
    from ignite.handlers import Checkpoint, DiskSaver

    def make():
        model = network()
        optimizer = fastopt.torch.AdamW(model.parameters(), lr=SCHEDULE)
        engine = trainer(model, optimizer)
        return engine, {"model": model, "optimizer": optimizer, "engine": engine}

    engine, straight = make()
    saver = Checkpoint(straight, DiskSaver(str(tmp_path)), n_saved=None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, saver)
    losses = run(engine)
    again, resumed = make()
    checkpoint = torch.load(tmp_path / "checkpoint_6.pt")
    Checkpoint.load_objects(resumed, checkpoint)
    assert run(again) == losses[6:]
    assert bits(resumed["model"].state_dict()) == bits(straight["model"].state_dict())
