"""A base that is split among processes is the base."""

import pytest
import torch

from sdlora import apply, conditioning, models
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, loop, measuring, placement, processes, sharding
from sdlora.training.processes import World
from sdlora.training.sharding import Sharding

TOLD = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}


def launched(*words: str) -> dict[str, str]:
    """The environment that `accelerate launch` would give a process."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args([*words, "--num_machines", "1", "--num_processes", "2", "train/lora.py"])
    arguments.mixed_precision, arguments.use_cpu = arguments.mixed_precision or "no", False
    arguments.dynamo_backend = "no"
    return {**prepare_multi_gpu_env(arguments), "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], Sharding(smallest=100_000_000)),
        (["--fsdp_reshard_after_forward", "false"], Sharding(smallest=100_000_000, reshard=False)),
        (["--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP", "--fsdp_min_num_params", "5000"], Sharding("SIZE_BASED_WRAP", smallest=5000)),
        (["--fsdp_auto_wrap_policy", "NO_WRAP"], Sharding("NO_WRAP", smallest=100_000_000)),
        (
            ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_transformer_layer_cls_to_wrap", "ResnetBlock2D,CLIPEncoderLayer"],
            Sharding(classes=("ResnetBlock2D", "CLIPEncoderLayer"), smallest=100_000_000),
        ),
    ],
)
def test_what_accelerate_is_told_arrives(words, wanted):
    assert sharding.told(launched("--use_fsdp", "--fsdp_version", "2", *words)) == wanted
    assert sharding.told(launched("--multi_gpu")) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "FSDP in version 1, which splits flattened weights; take --fsdp_version 2"),
        (["--fsdp_version", "2", "--fsdp_offload_params", "true"], "--fsdp_offload_params true; leave it out"),
        (["--fsdp_version", "2", "--fsdp_activation_checkpointing", "true"], "set gradient_checkpointing = true"),
        (["--fsdp_version", "2", "--fsdp_auto_wrap_policy", "NO_RAP"], "is unknown; did you mean NO_WRAP"),
    ],
)
def test_what_a_frozen_base_cannot_be_told_is_refused(words, said):
    with pytest.raises(SdloraError, match=said):
        sharding.told(launched("--use_fsdp", *words))


def test_settings_and_flags_that_contradict_each_other_are_refused(monkeypatch, tmp_path):
    with pytest.raises(SdloraError, match="there is one process"):
        sharding.told({**TOLD, "WORLD_SIZE": "1"})
    with pytest.raises(SdloraError, match="fsdp_ignored_modules conv_in; leave it out"):
        sharding.told({**TOLD, "FSDP_IGNORED_MODULES": "conv_in"})
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SdloraError, match="compile = true with FSDP"):
        processes.check(TrainConfig(images=tmp_path, output=tmp_path, compile=True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    processes.check(TrainConfig(images=tmp_path, output=tmp_path))
    processes.check(TrainConfig(images=tmp_path, output=tmp_path, precision="bf16"))
    with pytest.raises(SdloraError, match="--mixed_precision bf16, and precision is fp32"):
        processes.check(TrainConfig(images=tmp_path, output=tmp_path, precision="fp32"))


@pytest.fixture(scope="module")
def group():
    """A group of this process alone: FSDP gathers from itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(components, config: TrainConfig) -> torch.Tensor:
    """Of the updates on U-Net and text encoder, after moving them off zero."""
    names = apply.select(components.modules, config.targets)
    parameters = apply.inject(components.modules, names, 2, 2.0, torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
        with placement.checkpointing(components, config):
            hint = conditioning.encode_tokens(components, conditioning.tokens(components, ["a cat", "a dog"]), config.clip_skip)
            ids = conditioning.time_ids([conditioning.Sizes((64, 64), (0, 0), (64, 64))] * 2)
            conditioning.predict(components.unet, x, torch.tensor([400, 700]), hint, ids).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    finally:
        apply.eject(components.modules)


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        (Sharding(), {}),
        (Sharding(reshard=False), {"clip_skip": 2}),
        (Sharding("SIZE_BASED_WRAP", smallest=20_000), {"gradient_checkpointing": True}),
        (Sharding(classes=("BasicTransformerBlock", "CLIPEncoderLayer")), {"gradient_checkpointing": True}),
        (Sharding("NO_WRAP"), {}),
    ],
)
def test_a_split_base_has_the_gradients_of_the_whole_one_which_stays_as_it_was(group, components, tmp_path, how, settings):
    config = TrainConfig(images=tmp_path, output=tmp_path, targets=("attention", "text_attention"), **settings)
    weights = {name: weight.clone() for name, weight in components.unet.state_dict().items()}
    places = [parameter.data_ptr() for parameter in components.unet.parameters()]
    working = sharding.split(components, config, how, torch.device("cpu"), 1)
    assert all(type(parameter.data).__name__ == "DTensor" for parameter in working.unet.parameters())
    assert sharding.whole(components, working) == [components.unet, *components.text_encoders]
    plain = config.model_copy(update={"gradient_checkpointing": False})
    torch.testing.assert_close(gradients(working, config), gradients(components, plain), rtol=1e-4, atol=1e-7)
    assert places == [parameter.data_ptr() for parameter in components.unet.parameters()]
    assert all(torch.equal(weights[name], weight) for name, weight in components.unet.state_dict().items())


@pytest.mark.parametrize("how", [Sharding(), Sharding("NO_WRAP")])
def test_what_stays_whole_of_a_text_encoder_does_not_go_where_the_original_goes(group, bases, tmp_path, how):
    """In a type for a place: PyTorch changes both within the same Parameter."""
    base = models.load(bases("sd1"))
    config = TrainConfig(images=tmp_path, output=tmp_path, targets=("attention", "text_attention"))
    working = sharding.split(base, config, how, torch.device("cpu"), 1)
    for module in sharding.whole(base, working):
        module.to(torch.float64)
    assert {p.dtype for p in base.text_encoders[0].parameters()} == {torch.float64}
    assert {p.dtype for module in (working.unet, *working.text_encoders) for p in module.parameters()} == {torch.float32}


def test_sdxl_with_both_text_encoders_has_the_gradients_of_the_whole_one(group, loaded, tmp_path):
    base = loaded("sdxl")
    config = TrainConfig(images=tmp_path, output=tmp_path, targets=("attention", "text_attention", "text_attention_2"))
    working = sharding.split(base, config, Sharding(), torch.device("cpu"), 1)
    assert len(sharding.whole(base, working)) == 3
    torch.testing.assert_close(gradients(working, config), gradients(base, config), rtol=1e-4, atol=1e-7)


def test_three_measured_steps_are_those_of_a_split_base_and_leave_the_whole_one_as_it_was(group, bases, pictures, tmp_path, monkeypatch):
    base = models.load(bases("sd1"))
    places = [parameter.data_ptr() for parameter in base.unet.parameters()]
    seen = []

    def steps(run, count):
        seen.append({type(parameter.data).__name__ for parameter in run.components.unet.conv_in.parameters()})
        assert run.world.sharding and run.components.unet is not base.unet
        return loop.steps(run, count)

    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "world", lambda: World(sharding=Sharding()))
    monkeypatch.setattr(measuring, "steps", steps)
    settings = TrainConfig(images=pictures, output=tmp_path / "run", resolution=64, batch_size=1, precision="fp32", rank=2)
    assert min(measuring.measure(settings, base).seconds) > 0 and seen == [{"DTensor"}]
    assert places == [parameter.data_ptr() for parameter in base.unet.parameters()] and not apply.carriers(base.modules)


def test_only_what_learns_is_split_and_blocks_that_are_not_there_are_named(group, components, tmp_path):
    config = TrainConfig(images=tmp_path, output=tmp_path)
    working = sharding.split(components, config, Sharding(), torch.device("cpu"), 1)
    assert working.text_encoders == components.text_encoders and working.vae is components.vae
    assert sharding.whole(components, working) == [components.unet]
    assert sharding.split(components, config, None, torch.device("cpu"), 1) is components
    with pytest.raises(SdloraError, match="ResnetBlock, which is not in the base; did you mean ResnetBlock2D"):
        sharding.split(components, config, Sharding(classes=("ResnetBlock",)), torch.device("cpu"), 1)
