"""What `accelerate launch --use_deepspeed` says: taken over, named as without effect, or refused; never obeyed in silence."""

import base64
import json
import os

import pytest

from sdlora import together
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, processes, sharding, zero
from sdlora.training.sharding import Sharding


def launched(*words: str) -> dict[str, str]:
    """What the variables are that `accelerate launch` would give a process."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    given = ["--num_machines", "1", "--num_processes", "2", "--main_process_port", "0", "train/lora.py"]
    arguments = launch_command_parser().parse_args(["--use_deepspeed", *words, *given])
    arguments.mixed_precision, arguments.dynamo_backend = arguments.mixed_precision or "no", "no"
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith("ACCELERATE_")} | {"WORLD_SIZE": "2"}


def configured(sections: dict) -> dict[str, str]:
    """The same for a configuration of DeepSpeed's own."""
    return launched("--deepspeed_config_file", base64.urlsafe_b64encode(json.dumps(sections).encode()).decode())


@pytest.fixture
def check(monkeypatch, tmp_path):
    """A function (variables, settings) -> what a training says to them."""

    def of(environment: dict[str, str], **settings) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        processes.check(TrainConfig(images=tmp_path, output=tmp_path, **settings))

    return of


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stages_that_share_an_optimisers_state_are_plain_data_parallelism_and_say_so(stage):
    told = launched("--zero_stage", str(stage))
    assert sharding.told(told) is None
    assert zero.told(told).stage == stage
    assert ("few MB and whole in each process" in zero.told(told).remark) == (stage > 0)
    assert zero.told({**told, "WORLD_SIZE": "1"}).stage == stage, "one process is a plain training"


def test_stage_3_splits_the_base_and_accelerates_own_default_is_stage_2():
    assert sharding.told(launched("--zero_stage", "3", "--zero3_init_flag", "true")) == Sharding()
    assert zero.told(launched()).stage == 2
    assert "the frozen base is split among the processes" in zero.told(launched("--zero_stage", "3")).remark
    assert zero.told({}) is None and sharding.told({"WORLD_SIZE": "2"}) is None
    with pytest.raises(SdloraError, match="there is one process; launch several, or take stage 2"):
        zero.told({**launched("--zero_stage", "3"), "WORLD_SIZE": "1"})


def test_a_configuration_file_counts_instead_of_flags_and_what_has_no_effect_is_named(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 3, "overlap_comm": true, "stage3_max_live_parameters": "auto"}, "steps_per_print": 9}')
    found = zero.told(launched("--zero_stage", "1", "--deepspeed_config_file", str(path)))
    assert found.stage == 3 and found.remark.endswith("; without effect: zero_optimization.overlap_comm, steps_per_print")
    assert zero.told(configured({"train_batch_size": "auto"})).stage == 0, "DeepSpeed's own default"
    with pytest.raises(SdloraError, match="none.json is not there"):
        zero.told(launched("--deepspeed_config_file", str(tmp_path / "none.json")))
    path.write_text("{")
    with pytest.raises(SdloraError, match="cannot be read as JSON"):
        zero.told(launched("--deepspeed_config_file", str(path)))
    with pytest.raises(SdloraError, match="there are stages 0 to 3"):
        zero.told(configured({"zero_optimization": {"stage": 4}}))


def test_what_a_configuration_leaves_open_is_what_the_flags_say():
    left = {"zero_optimization": {"stage": "auto"}, "gradient_clipping": "auto", "train_batch_size": "auto"}
    assert zero.told(configured(left)).config == {zero.STAGE: 2}, "accelerate's own default"
    assert sharding.told(configured(left) | launched("--zero_stage", "3")) == Sharding()
    assert zero.told(configured(left) | launched("--gradient_clipping", "0.5")).config == {zero.STAGE: 2, "gradient_clipping": 0.5}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "optimizer.type AdamW; set optimizer.name"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type WarmupLR; set schedule"),
        ({"amp": {"enabled": True}}, "amp.enabled True; set precision"),
        ({"activation_checkpointing": {"partition_activations": True}}, "set gradient_checkpointing = true"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "an adapter's optimiser keeps a few MB"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "a share of the base is small beside its activations"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "would round the base"),
    ],
)
def test_what_would_take_a_part_of_the_training_over_is_refused(sections, said):
    with pytest.raises(SdloraError, match=said):
        zero.told(configured(sections))


@pytest.mark.parametrize("flag", ["--offload_optimizer_device", "--offload_param_device"])
def test_offloading_is_refused_as_a_flag_and_none_is_none(flag):
    with pytest.raises(SdloraError, match="device cpu; leave it out"):
        zero.told(launched("--zero_stage", "3", flag, "cpu"))
    assert zero.told(launched("--zero_stage", "3", flag, "none")).config.keys() == {zero.STAGE}


AGREEING = {"train_micro_batch_size_per_gpu": 3, "train_batch_size": 12, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5}
SETTINGS = {"batch_size": 3, "accumulate": 2, "clip": 0.5, "precision": "bf16"}


def test_a_configuration_that_says_what_the_settings_say_is_taken(check):
    check(configured({**AGREEING, "bf16": {"enabled": True}, "fp16": {"enabled": False}, "amp": {"enabled": False}}), **SETTINGS)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu 4, and batch_size is 3"),
        ({"train_batch_size": 6}, "train_batch_size 6, and batch_size · accumulate · 2 processes is 12"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps 1, and accumulate is 2"),
        ({"gradient_clipping": 1.0}, "gradient_clipping 1.0, and clip is 0.5"),
        ({"fp16": {"enabled": True}}, "fp16.enabled, and precision is bf16; set precision = fp16"),
        ({"bf16": {"enabled": False}}, "bf16.enabled false, and precision is bf16"),
        ({"fp16": {"loss_scale": 128}}, "fp16.loss_scale 128, and the loss scale, which is dynamic"),
    ],
)
def test_a_configuration_that_contradicts_the_settings_is_refused(check, sections, said):
    with pytest.raises(SdloraError, match=said):
        check(configured({**AGREEING, **sections}), **SETTINGS)


def test_the_launchers_own_flags_are_compared_as_well(check):
    check(launched("--gradient_clipping", "0.5", "--gradient_accumulation_steps", "2"), **SETTINGS)
    with pytest.raises(SdloraError, match="--gradient_accumulation_steps 2, and accumulate is 1; set accumulate = 2"):
        check({}, clip=0.5)
    with pytest.raises(SdloraError, match="gradient_clipping 0.5, and clip is 1"):
        check({}, accumulate=2)


def test_what_accelerate_says_the_precision_is_counts_where_the_settings_leave_it_open(check):
    check({**configured({"bf16": {"enabled": True}}), "ACCELERATE_MIXED_PRECISION": "bf16"})
    with pytest.raises(SdloraError, match="fp16.enabled, and precision is fp32"):
        check({**configured({"fp16": {"enabled": True}}), "ACCELERATE_MIXED_PRECISION": "no"})


@pytest.mark.parametrize("junk", ["much", "nan", "1e999", ""])
def test_a_number_that_is_none_in_the_environment_is_one_line(junk):
    with pytest.raises(SdloraError, match="FSDP_MIN_NUM_PARAMS = .*a number is expected"):
        sharding.told({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "FSDP_MIN_NUM_PARAMS": junk})
    if junk:
        with pytest.raises(SdloraError, match="ACCELERATE_GRADIENT_CLIPPING = .*a number is expected"):
            zero.told({**launched(), "ACCELERATE_GRADIENT_CLIPPING": junk})


def test_deepspeed_need_not_be_there_for_a_process_to_begin(monkeypatch):
    """Nothing of its engine is used: accelerate is not told of it while it sets the processes up, and afterwards it is as it was."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    seen = []

    class State:
        num_processes = 1

        def __init__(self, **words):
            seen.append("ACCELERATE_USE_DEEPSPEED" in os.environ)

    monkeypatch.setattr("accelerate.PartialState", State)
    together.joined()
    assert seen == [False] and os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
