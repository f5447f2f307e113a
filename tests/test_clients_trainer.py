"""fastopt.torch in the Trainer of transformers, beside torch.optim."""

import random

import numpy as np
import pytest
import torch
from client_models import OPTIONS, assert_alike, language_model, texts
from fastopt.bench import trainer as trainer_benchmark
from fastopt.bench.measure import Pace
from tolerances import AUTOCAST_TRAINING, TORCH_TRAINING
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("offline")]
STEPS = 8
SCHEDULE = Warmup(Cosine(1e-2, steps=6), steps=2)


def trainer(folder, optimizers=(None, None), model=None, clips_in_step=False, **options):
    """A Trainer that logs every step, and saves in the middle."""
    from transformers import Trainer, TrainingArguments

    class ClippingTrainer(Trainer):
        def _clip_grad_norm(self, model):
            self.accelerator.unscale_gradients()
            return self.optimizer.optimizer.clip_grad_norm_(self.args.max_grad_norm)

    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_steps=STEPS // 2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"max_grad_norm": 0.0, "save_strategy": "no"} | options.pop("arguments", {}),
    )
    kind = ClippingTrainer if clips_in_step else Trainer
    return kind(model or language_model(), arguments, train_dataset=texts(), optimizers=optimizers, **options)


def losses(trained):
    """The loss of each step."""
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def adamw(library, model):
    """The optimizer of most tests."""
    return library.AdamW(model.parameters(), **OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        ({}, TORCH_TRAINING),
        ({"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}, TORCH_TRAINING),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 2}, TORCH_TRAINING),
        ({"bf16": True, "max_grad_norm": 0.1}, AUTOCAST_TRAINING),
    ],
    ids=["plain", "accumulated and clipped", "cosine", "mixed precision"],
)
def test_its_own_scheduler(tmp_path, arguments, tolerance):
    def train(library):
        model = language_model()
        running = trainer(tmp_path, (adamw(library, model), None), model, arguments=arguments)
        running.train()
        return losses(running), model

    assert_alike(train, tolerance=tolerance)


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        ({}, TORCH_TRAINING),
        ({"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}, TORCH_TRAINING),
        ({"bf16": True}, AUTOCAST_TRAINING),
    ],
    ids=["plain", "accumulated, cosine", "mixed precision"],
)
def test_clipping_inside_the_step(tmp_path, monkeypatch, arguments, tolerance):
    """As the recipe has it: the same training, and the same norms in the log, without torch's function."""
    from accelerate import Accelerator

    norms = {}

    def train(library):
        model = language_model()
        own = library is fastopt.torch
        arguments_of_both = arguments | {"max_grad_norm": 0.1}
        running = trainer(tmp_path, (adamw(library, model), None), model, own, arguments=arguments_of_both)
        with monkeypatch.context() as patched:
            if own:
                patched.delattr(Accelerator, "clip_grad_norm_")
            running.train()
        norms[library] = [entry["grad_norm"] for entry in running.state.log_history if "grad_norm" in entry]
        return losses(running), model

    assert_alike(train, tolerance=tolerance)
    assert min(norms[torch.optim]) > 0.1
    assert len(norms[torch.optim]) == STEPS
    np.testing.assert_allclose(norms[fastopt.torch], norms[torch.optim], rtol=tolerance)


def test_a_schedule_as_its_scheduler(tmp_path):
    """As the recipe has it; the log shows the rate that each step was taken with."""
    rates = []

    def train(library):
        model = language_model()
        optimizer = adamw(library, model)
        running = trainer(tmp_path, (optimizer, SCHEDULE.torch_scheduler(optimizer)), model)
        running.train()
        rates.append([entry["learning_rate"] for entry in running.state.log_history if "learning_rate" in entry])
        return losses(running), model

    assert_alike(train)
    for each in rates:
        np.testing.assert_allclose(each, SCHEDULE(range(STEPS)))


def test_a_class_and_its_options(tmp_path):
    """The Trainer makes the optimizer, with groups of its own."""

    def train(library):
        running = trainer(tmp_path, optimizer_cls_and_kwargs=(library.AdamW, OPTIONS))
        running.train()
        assert [len(group["params"]) for group in running.optimizer.param_groups] == [10, 18]
        return losses(running), running.model

    assert_alike(train)


@pytest.mark.parametrize("scheduled", [False, True], ids=["its own scheduler", "a schedule"])
@pytest.mark.parametrize("saved_by", [fastopt.torch, torch.optim], ids=["fastopt", "torch"])
def test_resuming(tmp_path, saved_by, scheduled):
    """As if it had not been interrupted, to the bit; a checkpoint of torch.optim goes on in fastopt."""

    def make(library):
        model = language_model()
        optimizer = adamw(library, model)
        scheduler = SCHEDULE.torch_scheduler(optimizer) if scheduled else None
        return trainer(tmp_path, (optimizer, scheduler), model, arguments={"save_strategy": "steps"})

    straight = make(saved_by)
    straight.train()
    resumed = make(fastopt.torch)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    np.testing.assert_allclose(losses(resumed), losses(straight), rtol=TORCH_TRAINING if saved_by is torch.optim else 0)
    if saved_by is fastopt.torch:
        assert bits(dict(resumed.model.state_dict())) == bits(dict(straight.model.state_dict()))


def test_a_schedule_in_the_optimizer_beside_its_own_scheduler(tmp_path):
    """Says what to do instead; and the model is trained all the same, though the schedule begins at 0."""
    model = language_model()
    optimizer = fastopt.torch.AdamW(model.parameters(), lr=SCHEDULE)
    running = trainer(tmp_path, (optimizer, None), model)
    with pytest.warns(UserWarning, match="torch_scheduler"):
        running.train()
    assert np.mean(losses(running)[-2:]) < np.mean(losses(running)[:2])


def test_the_benchmarks_trainers_clip_and_train_alike(monkeypatch):
    """And leave the global random states as they were."""
    models, plain = [], trainer_benchmark.language_model

    def noted(transformers):
        models.append(plain(transformers))
        return models[-1]

    monkeypatch.setattr(trainer_benchmark, "language_model", noted)
    monkeypatch.setattr(trainer_benchmark, "ITERATIONS", 4)
    monkeypatch.setattr(trainer_benchmark, "WARM_UP", 1)
    before = random.getstate(), torch.get_rng_state()
    found = trainer_benchmark.iterations(Pace(seconds=0, fewest=2, most=2))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [row["implementation"] for row in found] == ["fastopt.torch", "torch-fused"]
    examples = trainer_benchmark.texts()
    batch = {key: torch.stack([text[key] for text in examples]) for key in ("input_ids", "labels")}
    ours, theirs = (model(**batch).loss.item() for model in models)
    assert ours < 0.9 * np.log(trainer_benchmark.VOCABULARY)  # that of a guess
    assert ours == pytest.approx(theirs, rel=1e-3)
