"""LoCon in Tucker form, written by LyCORIS: read and translated without loss of ΔW, in fp64 as the arithmetic of both."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdlora import files
from sdlora.errors import SdloraError
from sdlora.formats import FORMATS, decode, onetrainer

LAYER, KEY = "unet.down_blocks.1.resnets.0.conv1", "lora_unet_down_blocks_1_resnets_0_conv1"


def written(rank: int, alpha: float, dtype: torch.dtype):
    """(state dict of LyCORIS's module as its trainer saves it, its own ΔW in fp64)."""
    from lycoris.modules.locon import LoConModule

    torch.manual_seed(rank)
    module = LoConModule(KEY, nn.Conv2d(6, 10, 3, padding=1), 1.0, rank, alpha, use_tucker=True)
    for part in (module.lora_up, module.lora_mid, module.lora_down):
        nn.init.normal_(part.weight, std=0.3)
    module.to(dtype)
    state = {f"{KEY}.{name}": tensor.detach().clone() for name, tensor in module.custom_state_dict().items()}
    return state, module.double().get_diff_weight()[0].detach()


def delta(update) -> torch.Tensor:
    return update.delta(torch.empty(update.shape, dtype=torch.float64))


@pytest.mark.parametrize("rank, alpha", [(1, 1.0), (4, 2.0), (7, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tucker_files_update_is_lycoris_own(tmp_path, rank, alpha, dtype):
    state, theirs = written(rank, alpha, dtype)
    save_file(state, tmp_path / "tucker.safetensors")
    adapter, report = files.read_reported(tmp_path / "tucker.safetensors")
    update = adapter.layers[LAYER]
    assert (update.rank, update.alpha, update.shape, report.surplus) == (rank, alpha, (10, 6, 3, 3), ())
    assert (delta(update) - theirs).abs().max() <= 1e-15 * theirs.abs().max() and theirs.abs().max() > 0.01
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    layer = nn.Conv2d(6, 10, 3, padding=1).double()
    torch.testing.assert_close(update.residual(x, layer), nn.functional.conv2d(x, theirs, padding=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("format", FORMATS)
def test_a_tucker_file_is_translated_without_loss_and_then_stays_as_it_is(tmp_path, format):
    state, _ = written(4, 2.0, torch.float32)
    save_file(state, tmp_path / "tucker.safetensors")
    first = files.read(tmp_path / "tucker.safetensors")
    now = files.read(files.save(first, tmp_path / "plain.safetensors", format)).layers[LAYER]
    assert torch.equal(delta(now), delta(first.layers[LAYER])) and now.alpha == 2.0


def test_tucker_is_known_by_dotted_keys_too():
    assert onetrainer.split("unet.input_blocks.4.0.in_layers.2.lora_mid.weight") == (LAYER, "mid", "onetrainer")


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("lora_mid", (4, 3, 3, 3), "is no LoCon in Tucker form: down"),
        ("lora_mid", (4, 4), "is no LoCon in Tucker form: down"),
        ("lora_down", (4, 6, 3, 3), "is no LoCon in Tucker form: down"),
        ("lora_up", (10, 5, 1, 1), "is no pair of LoRA matrices"),
    ],
)
def test_tucker_matrices_that_do_not_fit_are_refused(field, shape, message):
    state, _ = written(4, 2.0, torch.float32)
    with pytest.raises(SdloraError, match=message):
        decode(state | {f"{KEY}.{field}.weight": torch.ones(shape)})
    lonely = {key: tensor for key, tensor in state.items() if "lora_down" not in key}
    with pytest.raises(SdloraError, match="but no down matrix"):
        decode(lonely)
