"""fastopt.torch on models of peft: adapters beside weights that are frozen, and may have any dtype."""

import pytest
import torch
from client_models import OPTIONS, assert_alike, language_model, texts
from torch_cases import bits

import fastopt.torch

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("offline")]
BATCH = torch.stack([text["input_ids"] for text in texts(8)])


def adapted(**options):
    """A tiny language model with LoRA's adapters, always the same ones."""
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", **options)
        return peft.get_peft_model(language_model(), config)


def fit(model, optimizer, steps=8):
    """Train on one batch, clipped, and return what `assert_alike` compares."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=BATCH, labels=BATCH).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_adapters(options):
    """All parameters are given, as most programs do; those that are frozen stay what they are."""

    def train(library):
        model = adapted(**options)
        frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        trained = fit(model, library.AdamW(model.parameters(), **OPTIONS))
        assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
        return trained

    assert_alike(train)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn], ids=str)
def test_adapters_beside_quantized_weights(dtype):
    """As QLoRA has them: parameters of other dtypes that never get a gradient are left alone, in the same group."""

    def train(library):
        model = adapted()
        quantized = torch.nn.Parameter(torch.ones(8, 8).to(dtype), requires_grad=False)
        model.register_parameter("quantized", quantized)
        losses, model = fit(model, library.AdamW(model.parameters(), **OPTIONS))
        assert torch.equal(quantized.float(), torch.ones(8, 8))
        del model.quantized
        return losses, model

    assert_alike(train)


def test_an_adapter_that_is_switched_on_later():
    """Its first gradient comes late; the other one's stay away from then on."""

    def train(library):
        model = adapted()
        model.add_adapter("second", model.peft_config["default"])
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_A.second" in name:
                    p.fill_(0.1)
        model.set_adapter("default")
        optimizer = library.AdamW(model.parameters(), **OPTIONS)
        first, _ = fit(model, optimizer)
        model.set_adapter("second")
        second, _ = fit(model, optimizer)
        counts = sorted({float(state["step"]) for state in optimizer.state.values() if state})
        assert counts == [8.0]
        return [*first, *second], model

    losses, _ = train(fastopt.torch)
    torchs, _ = train(torch.optim)
    assert losses == pytest.approx(torchs, rel=1e-4)


def test_resuming(tmp_path):
    """The adapters alone are saved, with the optimizer's state."""
    import peft

    straight = adapted()
    optimizer = fastopt.torch.AdamW([p for p in straight.parameters() if p.requires_grad], **OPTIONS)
    fit(straight, optimizer)
    straight.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    losses, _ = fit(straight, optimizer)

    resumed = peft.PeftModel.from_pretrained(language_model(), tmp_path, is_trainable=True)
    optimizer = fastopt.torch.AdamW([p for p in resumed.parameters() if p.requires_grad], **OPTIONS)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    again, _ = fit(resumed, optimizer)
    assert losses == again
    assert bits(dict(resumed.state_dict())) == bits(dict(straight.state_dict()))
