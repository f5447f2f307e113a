"""fastopt.torch in skorch, beside torch.optim."""

import pytest
import torch
from client_models import OPTIONS, assert_alike, examples, network
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("offline")]
SCHEDULE = Warmup(Cosine(1e-2, steps=30), steps=6)


def net(optimizer, **options):
    """A NeuralNet that trains the network of these tests."""
    from skorch import NeuralNetRegressor

    options = {f"optimizer__{name}": value for name, value in OPTIONS.items()} | options
    silent = {"verbose": 0, "train_split": None, "iterator_train__shuffle": False}
    return NeuralNetRegressor(network, optimizer=optimizer, batch_size=8, **silent | {"max_epochs": 6} | options)


def callbacks(clip=None):
    """Clipping, or nothing."""
    from skorch.callbacks import GradientNormClipping

    return [] if clip is None else [GradientNormClipping(clip)]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_training(clip):
    def train(library):
        trained = net(library.AdamW, callbacks=callbacks(clip)).fit(*examples())
        return trained.history[:, "train_loss"], trained.module_

    assert_alike(train)


def test_options_by_group():
    """Options of groups, by pattern, and those that are set later, for which skorch makes the optimizer anew."""

    def train(library):
        trained = net(library.AdamW, optimizer__param_groups=[("*.bias", {"weight_decay": 0.0})])
        trained.fit(*examples())
        assert [group["weight_decay"] for group in trained.optimizer_.param_groups] == [0.0, 0.1]
        first = trained.history[:, "train_loss"]
        trained.set_params(optimizer__weight_decay=0.2)
        trained.partial_fit(*examples())
        return [*first, *trained.history[:, "train_loss"]], trained.module_

    assert_alike(train)


def test_its_schedulers():
    """LRScheduler, with one of torch's and with a schedule's."""
    from skorch.callbacks import LRScheduler

    policies = [
        LRScheduler("StepLR", step_size=10, gamma=0.5, step_every="batch"),
        LRScheduler(SCHEDULE.torch_scheduler, step_every="batch"),
    ]
    for policy in policies:

        def train(library, policy=policy):
            trained = net(library.AdamW, callbacks=[policy]).fit(*examples())
            return trained.history[:, "train_loss"], trained.module_

        assert_alike(train)


@pytest.mark.parametrize("options", [{}, {"optimizer__lr": SCHEDULE}], ids=["a number", "a schedule"])
def test_resuming(tmp_path, options):
    """From save_params, to the bit."""
    straight = net(fastopt.torch.AdamW, max_epochs=3, **options).fit(*examples())
    names = {"f_params": str(tmp_path / "model.pt"), "f_optimizer": str(tmp_path / "optimizer.pt")}
    straight.save_params(**names)
    straight.partial_fit(*examples())
    resumed = net(fastopt.torch.AdamW, max_epochs=3, **options).initialize()
    resumed.load_params(**names)
    resumed.partial_fit(*examples())
    assert resumed.history[:, "train_loss"] == straight.history[3:, "train_loss"]
    assert bits(resumed.module_.state_dict()) == bits(straight.module_.state_dict())


def test_a_grid_search():
    """sklearn clones the net for each point and fold."""
    from sklearn.model_selection import GridSearchCV

    def best(library):
        search = GridSearchCV(net(library.AdamW), {"optimizer__lr": [1e-4, 1e-2]}, cv=2, refit=False)
        x, y = examples()
        search.fit(x.numpy(), y.numpy())
        return search.best_params_

    assert best(fastopt.torch) == best(torch.optim) == {"optimizer__lr": 1e-2}
