"""Laws of what a base model is: its family and prediction type, from keys, shapes and markers, or from the user."""

import pytest
import torch

from sdlora import conditioning, models
from sdlora.checkpoints import configs, identify, single
from sdlora.errors import SdloraError
from sdlora.families import EPSILON, FAMILIES, V
from sdlora.schedule import alphas_bar, zero_terminal

EVERY = pytest.mark.parametrize("family", FAMILIES)


@EVERY
def test_family_and_prediction_are_found_without_any_header(hollow, family):
    found = models.opened(hollow(family))
    found.check()
    assert found.configs["unet"]["block_out_channels"] == configs.packaged(family)["unet"]["block_out_channels"]
    assert found.family.name == family and not found.surplus and not any(found.missing(name) for name in found.modules)
    assert found.prediction.kind == (None if family == "sd2" else EPSILON)


MARKS = [
    ("sdxl", {"v_pred": torch.zeros(0)}, {}, V, False),
    ("sdxl", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, V, True),
    ("sd1", {}, {"modelspec.prediction_type": "v"}, V, False),
    ("sd1", {}, {"modelspec.prediction_type": "epsilon"}, EPSILON, False),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V, False),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON, False),
]


@pytest.mark.parametrize("family, keys, header, prediction, zero_snr", MARKS)
def test_markers_tell_the_prediction_type(hollow, family, keys, header, prediction, zero_snr):
    found = models.opened(hollow(family, lambda tensors: tensors.update(keys), header)).prediction
    assert (found.kind, found.zero_snr) == (prediction, zero_snr)


def test_the_noise_of_a_zero_terminal_checkpoint_ends_in_pure_noise(changed):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = changed("sd1", lambda tensors: tensors.update(marks))
    components = models.load(file)
    assert components.prediction == V and torch.equal(components.alphas_bar, zero_terminal(alphas_bar()))


def test_the_user_has_the_last_word_on_the_prediction_type_but_not_on_the_family(hollow):
    file = hollow("sdxl", lambda tensors: tensors.update(v_pred=torch.zeros(0)), {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(SdloraError, match="contradicts itself: the key v_pred says v_prediction, modelspec.prediction_type says epsilon"):
        models.opened(file)
    assert models.opened(file, prediction=V).prediction == identify.Prediction(V, False, "as you said")
    assert models.opened(file, prediction=V, family="sdxl").family.name == "sdxl"
    with pytest.raises(SdloraError, match="is Stable Diffusion XL .sdxl. by its keys and shapes, not sd1"):
        models.opened(file, prediction=V, family="sd1")
    with pytest.raises(SdloraError, match="unknown prediction type 'v_predicton'; did you mean v_prediction"):
        models.opened(file, prediction="v_predicton")


def test_what_was_found_is_said_in_one_line(changed):
    said = []
    models.load(changed("sd1"), say=said.append)
    assert said == ["changed.safetensors: Stable Diffusion 1.x, predicts epsilon (no marker: Stable Diffusion 1.x's own)"]


class Says:
    """A U-Net that knows ε, and says ε or v of it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction):
        self.prediction, self.bar = prediction, alphas_bar()[-1]

    def __call__(self, x, t, encoder_hidden_states, return_dict):
        epsilon = x  # the best guess where almost all is noise; the picture guessed is a smooth one
        smooth = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape)
        return (epsilon if self.prediction == EPSILON else self.bar.sqrt() * epsilon - (1 - self.bar).sqrt() * smooth,)


@pytest.mark.parametrize("prediction", [EPSILON, V])
def test_a_u_net_that_says_nothing_of_its_prediction_type_is_asked(prediction):
    from sdlora.checkpoints import measure

    assert measure.prediction(measure.alignment(Says(prediction), torch.zeros(1, 77, 8))) == prediction


@pytest.mark.slow
def test_the_embedded_base_is_found_to_predict_noise():
    from sdlora.checkpoints import measure

    components = models.load("emoji")
    context = conditioning.encode_text(components, [""]).context
    assert measure.alignment(components.unet, context) > 0.9


def test_sd_2_without_a_marker_is_measured_when_it_is_loaded(changed):
    said = []
    components = models.load(changed("sd2"), say=said.append)
    assert "measured: what it says of pure noise has a cosine of" in said[0]
    assert components.prediction in (EPSILON, V)
    assert components.size == (768 if components.prediction == V else 512)


@pytest.mark.parametrize("stated", ["stable-diffusion-xl-turbo-v1", "stable-diffusion-xl-v1-base/lora", "my-own-merge", ""])
def test_a_header_may_name_a_variant_of_the_family_or_say_something_else(hollow, stated):
    assert models.opened(hollow("sdxl", metadata={"modelspec.architecture": stated})).family.name == "sdxl"


@pytest.mark.parametrize("stated", ["Flux.1-dev", "stable-diffusion-v1", "stable-diffusion-v3-medium"])
def test_a_header_that_names_another_model_is_a_contradiction_too(hollow, stated):
    with pytest.raises(SdloraError, match=f"is Stable Diffusion XL by its keys, and its header says {stated}"):
        models.opened(hollow("sdxl", metadata={"modelspec.architecture": stated}))


CONFIGURATIONS = [
    ("[1]", "is no table of configurations"),
    ('{"unet": 3}', "is no table of configurations"),
    ("{", "is not JSON"),
    ('{"unet": {"block_out_channels": "x"}}', "the configuration of the unet makes no UNet2DConditionModel"),
]


@pytest.mark.parametrize("stated, message", CONFIGURATIONS)
def test_configurations_in_the_header_that_are_none_are_one_clear_line(hollow, stated, message):
    with pytest.raises(SdloraError, match=message) as refusal:
        models.opened(hollow("sd1", metadata={single.CONFIGS: stated}))
    assert "\n" not in str(refusal.value)


def test_a_header_that_names_another_family_is_a_contradiction(hollow):
    with pytest.raises(SdloraError, match="is Stable Diffusion 1.x by its keys, and its header says stable-diffusion-xl-v1-base"):
        models.opened(hollow("sd1", metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"}))
