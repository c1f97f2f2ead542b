"""The law that tests leave nothing behind can fail: each trace that a test could leave is found and named, once."""

import pytest
import torch
from untouched import Watch, changed_settings, settings

from sdlora import apply


@pytest.fixture
def own(tiny_base):
    from sdlora import models

    return models.load(tiny_base)


def hook(base):
    base.unet.conv_in.register_forward_hook(lambda *rest: None)


def method(base):
    base.unet.mid_block.forward = lambda *rest: None


def mode(base):
    base.vae.decoder.train()


def gradients(base):
    base.unet.conv_out.requires_grad_()


@torch.no_grad()
def numbers(base):
    base.text_encoders[0].get_input_embeddings().weight[3, 0] += 1


def numbers_unseen(base):
    base.text_encoders[0].get_input_embeddings().weight.data[3, 0] += 1


def setting(base):
    base.text_encoders[0].config.hidden_act = "relu"


def processor(base):
    from sdlora import hardware

    hardware.set_attention(base.unet, "sdpa")


def tiling(base):
    base.vae.enable_tiling()


def layer(base):
    apply.inject(base.modules, apply.select(base.modules)[:1], 2, 2.0, torch.Generator())


def parameter(base):
    base.unet.conv_in.weight = torch.nn.Parameter(base.unet.conv_in.weight + 1, requires_grad=False)


def precision(base):
    base.unet.time_embedding.half()


EXPECTED = {
    hook: "conv_in._forward_hooks",
    method: "unet mid_block: forward",
    mode: "vae decoder: training was False",
    gradients: "conv_out.weight takes a gradient",
    numbers: "text encoder 1",
    numbers_unseen: "text encoder 1",
    setting: "configuration of text encoder 1: hidden_act",
    processor: "processor was",
    tiling: "vae: use_tiling",
    layer: "_modules",
    parameter: "conv_in._parameters: weight",
    precision: "time_embedding.linear_1.weight",
}


@pytest.mark.parametrize("leave", EXPECTED, ids=lambda leave: leave.__name__)
def test_a_trace_on_a_base_is_found_once_and_named(own, leave):
    watch = Watch(own)
    assert watch.traces() == []
    leave(own)
    assert EXPECTED[leave] in "; ".join(watch.traces(every_number=leave is numbers_unseen))
    assert watch.traces() == []


def test_an_adapter_that_came_and_went_is_no_trace(own, random_adapter):
    watch = Watch(own)
    adapter = random_adapter(own.modules)
    for how in (apply.stacked, apply.fused):
        with how(own.modules, [(adapter, 1.0)]):
            assert watch.traces()
        watch.remember()
    watch = Watch(own)
    with apply.fused(own.modules, [(adapter, 1.0)]):
        pass
    assert watch.traces() == []


def test_activations_that_are_computed_twice_are_so_for_the_training_alone(own, tmp_path):
    """transformers and diffusers leave hooks and functions on the networks by themselves."""
    from sdlora.training import TrainConfig, placement

    settings = {"images": tmp_path, "output": tmp_path / "run", "precision": "fp32", "targets": ("attention", "text_attention")}
    config = TrainConfig(**settings, gradient_checkpointing=True).settled()
    watch = Watch(own)
    with placement.checkpointing(own, config):
        pass
    assert watch.traces() == []
    with placement.checkpointing(own, config):
        assert watch.traces()


def test_a_setting_of_the_process_is_found():
    before = settings()
    torch.set_default_dtype(torch.float64)
    try:
        assert changed_settings(before) == ["default dtype was torch.float32 and is torch.float64"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert not changed_settings(before)


def test_every_test_draws_the_same_numbers_whatever_ran_before_it():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)
