"""fastopt.torch in accelerate, beside torch.optim."""

import pytest
import torch
from client_models import OPTIONS, assert_alike, batches, network
from tolerances import AUTOCAST_TRAINING, TORCH_TRAINING
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("accelerators")]
SCHEDULE = Warmup(Cosine(1e-2, steps=9), steps=3)


@pytest.fixture
def accelerators(offline):
    """What accelerate knows about the process is forgotten afterwards."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(library, schedule=None, model=None, **options):
    """An accelerator with all that it prepares; the schedule goes into a scheduler."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, **options)
    model = network() if model is None else model
    optimizer = library.AdamW(model.parameters(), **OPTIONS)
    things = [model, optimizer, batches()]
    if schedule is not None:
        things.append(schedule.torch_scheduler(optimizer))
    return accelerator, *accelerator.prepare(*things)


def train(accelerator, model, optimizer, loader, scheduler=None, clip=None, epochs=2, clips_in_step=False):
    """Train as accelerate's own examples do, and return what `assert_alike` compares, and the rates."""
    losses, rates = [], []
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                if clip and accelerator.sync_gradients:
                    if clips_in_step:
                        accelerator.unscale_gradients(optimizer)
                        optimizer.optimizer.clip_grad_norm_(clip)
                    else:
                        accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
    return losses, accelerator.unwrap_model(model), rates


@pytest.mark.parametrize(("precision", "tolerance"), [("no", TORCH_TRAINING), ("bf16", AUTOCAST_TRAINING)])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    ("clip", "in_step"), [(None, False), (0.1, False), (0.1, True)], ids=["plain", "clipped", "clipped in the step"]
)
def test_training(clip, in_step, accumulated, precision, tolerance):
    def run(library):
        options = {"gradient_accumulation_steps": accumulated, "mixed_precision": precision}
        clips_in_step = in_step and library is fastopt.torch
        return train(*prepared(library, SCHEDULE, **options), clip=clip, clips_in_step=clips_in_step)[:2]

    assert_alike(run, tolerance=tolerance)


@pytest.mark.parametrize("saved_by", [fastopt.torch, torch.optim], ids=["fastopt", "torch"])
def test_resuming(tmp_path, saved_by):
    """As if it had not been interrupted, to the bit; what torch.optim has saved goes on in fastopt."""
    accelerator, *straight = prepared(saved_by, SCHEDULE)
    train(accelerator, *straight, epochs=1)
    accelerator.save_state(str(tmp_path))
    losses, model, rates = train(accelerator, *straight, epochs=1)

    other, *resumed = prepared(fastopt.torch, SCHEDULE)
    other.load_state(str(tmp_path))
    again, model_again, rates_again = train(other, *resumed, epochs=1)
    assert again == pytest.approx(losses, rel=TORCH_TRAINING if saved_by is torch.optim else 0, abs=0)
    assert rates == rates_again
    if saved_by is fastopt.torch:
        assert bits(model.state_dict()) == bits(model_again.state_dict())


@pytest.mark.parametrize("lr", [SCHEDULE, lambda step: SCHEDULE(step)], ids=["a schedule", "a function"])
def test_a_schedule_in_the_optimizer_counts_its_steps(lr):
    """As many as were taken, however many batches make one, and survives being prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    things = accelerator.prepare(model, fastopt.torch.AdamW(model.parameters(), lr=lr), batches())
    *_, rates = train(accelerator, *things)
    assert rates[1::2] == [SCHEDULE(step) for step in range(len(rates) // 2)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_prepared_scheduler_advances_once_per_process(monkeypatch, processes):
    """Times the number of processes, as the recipe says; a schedule in the optimizer does not."""
    from accelerate.state import PartialState

    _, _, optimizer, _, scheduler = prepared(fastopt.torch, SCHEDULE)
    with monkeypatch.context() as several:
        several.setitem(PartialState._shared_state, "num_processes", processes)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        for step in range(1, 5):
            optimizer.step()
            scheduler.step()
            assert optimizer.param_groups[0]["lr"] == SCHEDULE(step * processes)


def test_a_skipped_step_is_reported():
    """By its wrapper of an optimizer and a GradScaler; a skipped step changes and counts nothing."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)

    def run(library):
        model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer = AcceleratedOptimizer(library.AdamW(model.parameters(), **OPTIONS), scaler=scaler)
        losses, skipped = [], []
        for step, (x, y) in enumerate(batches()):
            loss = torch.nn.functional.mse_loss(model(x), y)
            scaler.scale(loss * float("inf") if step in (0, 3) else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            skipped.append(optimizer.step_was_skipped)
        assert skipped == [step in (0, 3) for step in range(len(skipped))]
        assert {float(state["step"]) for state in optimizer.state.values()} == {len(skipped) - 2}
        assert scaler.get_scale() == 2.0
        return losses, model

    assert_alike(run)
