"""fastopt.torch in Lightning and in Fabric, beside torch.optim."""

import warnings

import pytest
import torch
from client_models import OPTIONS, assert_alike, batches, network
from tolerances import AUTOCAST_TRAINING, TORCH_TRAINING
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("offline")]
PRECISIONS = {"32-true": TORCH_TRAINING, "bf16-mixed": AUTOCAST_TRAINING}
SCHEDULE = Warmup(Cosine(1e-2, steps=15), steps=3)


def module(library, optimize=None, clips_in_step=False, **options):
    """A LightningModule, optionally with manual optimization, or with clipping inside the step."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()
            self.losses = []
            self.automatic_optimization = optimize is None

        def training_step(self, batch, index):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.model(x).float(), y)
            self.losses.append(loss.item())
            if optimize is not None:
                optimize(self, loss)
            return loss

        def configure_optimizers(self):
            optimizer = library.AdamW(self.parameters(), **OPTIONS | options)
            if "lr" in options:  # a schedule
                return optimizer
            scheduler = SCHEDULE.torch_scheduler(optimizer)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    class ClippingModule(Module):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            optimizer.clip_grad_norm_(gradient_clip_val)

    return ClippingModule() if clips_in_step else Module()


def lightning_trainer(folder=".", **options):
    """A Trainer of Lightning that prints nothing and, unless asked to, saves nothing."""
    import lightning

    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "enable_checkpointing": False}
    return lightning.Trainer(default_root_dir=folder, **silent | defaults | options)


def fit(trained, ckpt_path=None, **options):
    """Train, and return what `assert_alike` compares."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        lightning_trainer(**options).fit(trained, batches(), ckpt_path=ckpt_path)
    return trained.losses, trained.model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    ],
    ids=str,
)
def test_automatic_optimization(options, precision):
    def train(library):
        return fit(module(library), precision=precision, **options)

    assert_alike(train, tolerance=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_clipping_inside_the_step(precision, accumulated):
    """By Lightning's hook, as the recipe has it."""

    def train(library):
        running = module(library, clips_in_step=library is fastopt.torch)
        return fit(running, precision=precision, gradient_clip_val=0.1, accumulate_grad_batches=accumulated)

    assert_alike(train, tolerance=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_manual_optimization(precision):
    """Clipped, and accumulated over two batches."""

    def optimize(running, loss):
        optimizer = running.optimizers()
        running.manual_backward(loss)
        if len(running.losses) % 2 == 0:
            running.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            running.lr_schedulers().step()
            optimizer.zero_grad()

    def train(library):
        return fit(module(library, optimize), precision=precision)

    assert_alike(train, tolerance=PRECISIONS[precision])


def test_what_manual_optimization_may_ask_of_the_optimizer():
    """All that Lightning's wrapper passes on."""
    asked = []

    def optimize(running, loss):
        optimizer = running.optimizers()
        running.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        running.manual_backward(loss)
        optimizer.step()
        running.untoggle_optimizer(optimizer)
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        asked.append((repr(optimizer), optimizer.param_groups[0]["lr"], len(optimizer.state), len(state["state"])))

    def train(library):
        return fit(module(library, optimize))

    assert_alike(train)
    mine, torchs = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    assert [each[1:] for each in mine] == [each[1:] for each in torchs]
    assert all("AdamW" in each[0] for each in asked)


@pytest.mark.parametrize(
    ("clip", "in_step", "options"),
    [(None, False, {}), (0.1, False, {}), (0.1, True, {}), (None, False, {"fused": True})],
    ids=["plain", "clipped", "clipped in the step", "fused"],
)
def test_float16_with_a_scaler(clip, in_step, options):
    """Gradients are clipped after they are unscaled; a scale that is far too large makes it skip the first steps."""

    def train(library):
        from lightning.pytorch.plugins import MixedPrecision

        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        running = module(library, clips_in_step=in_step and library is fastopt.torch, **options)
        trained = fit(running, plugins=[plugin], gradient_clip_val=clip, max_epochs=4)
        assert scaler.get_scale() < 2.0**20
        return trained

    assert_alike(train, tolerance=AUTOCAST_TRAINING)


@pytest.mark.parametrize("library", [fastopt.torch, torch.optim], ids=["fastopt", "torch"])
def test_clipping_what_the_step_unscales_is_refused(library):
    """By Lightning, of optimizers that are made with fused=True."""
    with pytest.raises(RuntimeError, match="fused"):
        fit(module(library, fused=True), precision="bf16-mixed", gradient_clip_val=0.1)


@pytest.mark.parametrize(
    ("saved_by", "options"),
    [(fastopt.torch, {}), (fastopt.torch, {"lr": SCHEDULE}), (torch.optim, {})],
    ids=["fastopt", "a schedule in the optimizer", "torch"],
)
def test_resuming(tmp_path, saved_by, options):
    """As if it had not been interrupted, to the bit; a checkpoint of torch.optim goes on in fastopt."""
    import lightning

    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    straight = module(saved_by, **options)
    fit(straight, enable_checkpointing=True, callbacks=[save])
    resumed = module(fastopt.torch, **options)
    fit(resumed, ckpt_path=tmp_path / "epoch=1.ckpt")
    third = straight.losses[-len(resumed.losses) :]
    assert len(resumed.losses) == len(straight.losses) // 3
    assert resumed.losses == pytest.approx(third, rel=TORCH_TRAINING if saved_by is torch.optim else 0, abs=0)
    if saved_by is fastopt.torch:
        assert bits(resumed.state_dict()) == bits(straight.state_dict())


def fabric(precision="32-true"):
    """A Fabric on the CPU."""
    import lightning

    return lightning.Fabric(accelerator="cpu", devices=1, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("clip", [{}, {"max_norm": 0.1}, {"clip_val": 0.01}], ids=str)
def test_fabric(clip, precision):
    def train(library):
        running = fabric(precision)
        model = network()
        wrapped, optimizer = running.setup(model, library.AdamW(model.parameters(), **OPTIONS))
        losses = []
        for x, y in running.setup_dataloaders(batches()):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(wrapped(x), y)
            running.backward(loss)
            if clip:
                running.clip_gradients(wrapped, optimizer, **clip)
            optimizer.step()
            losses.append(loss.item())
        return losses, model

    assert_alike(train, tolerance=PRECISIONS[precision])


def test_fabric_resumes(tmp_path):
    """From a state dict and from a file, to the bit, with the schedule."""

    def train(steps, state):
        for x, y in list(batches())[steps]:
            state["optimizer"].zero_grad()
            running.backward(torch.nn.functional.mse_loss(state["model"](x), y))
            state["optimizer"].step()

    def made(schedule):
        model = network()
        wrapped, optimizer = running.setup(model, fastopt.torch.AdamW(model.parameters(), **OPTIONS | {"lr": schedule}))
        return {"model": wrapped, "optimizer": optimizer}

    running = fabric()
    straight, other, resumed = made(SCHEDULE), made(0.5), made(0.5)
    train(slice(3), straight)
    running.save(tmp_path / "saved.ckpt", straight)
    running.load(tmp_path / "saved.ckpt", resumed)
    other["model"].load_state_dict(straight["model"].state_dict())
    other["optimizer"].load_state_dict(straight["optimizer"].state_dict())
    for each in (straight, other, resumed):
        train(slice(3, 6), each)
    assert bits(straight["model"].state_dict()) == bits(other["model"].state_dict())
    assert bits(straight["model"].state_dict()) == bits(resumed["model"].state_dict())
    assert resumed["optimizer"].param_groups[0]["lr"] == SCHEDULE(5)
