"""Small models, their data and comparisons, for the tests of other people's training loops; no tests here."""

import numpy as np
import torch
from tolerances import TORCH_TRAINING

import fastopt.torch

# The bias of attention's keys has no gradient but rounding errors, of 1e-9, which Adam makes as large as any other
# gradient where eps is smaller still.
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4}


def network():
    """A small network for regression, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def examples(count=48):
    """What it learns: inputs and targets."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :1] * x[:, 1:2] + x[:, 2:3]


def batches(size=8):
    """The same, in batches, without shuffling."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), batch_size=size)


def language_model():
    """A tiny GPT-2, always the same, from a config."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


def texts(count=64):
    """What it learns: to count on."""
    counted = (torch.arange(count)[:, None] + torch.arange(12)) % 32
    return [{"input_ids": ids, "labels": ids} for ids in counted]


def assert_alike(train, *arguments, tolerance=TORCH_TRAINING):
    """Assert that a training, which returns losses and a model, does the same with fastopt.torch and with torch.optim.

    And that it trains: the last losses are below the first ones.
    """
    (losses, model), (torchs, other) = train(fastopt.torch, *arguments), train(torch.optim, *arguments)
    assert len(losses) > 4
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    np.testing.assert_allclose(losses, torchs, rtol=tolerance, atol=tolerance)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
