"""Pictures from the prompt language: against a sampler written out by hand, alone and in any batch."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sdlora import apply, files, latents
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.generation import Request, draw, generate
from sdlora.generation.conditions import composed
from sdlora.images import read_settings
from sdlora.prompts import encode

STEPS = 4

Conds = Sequence[tuple[float, torch.Tensor]]


def pixels(components, requests, *args, **settings) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in generate(components, requests, *args, **settings)]


def difference(one: np.ndarray, two: np.ndarray) -> int:
    return int(abs(one - two).max())


@torch.no_grad()
def by_hand(
    components, request: Request, conds: Callable[[int], Conds], negative: torch.Tensor, enter: Callable[[int], object] = lambda step: None
) -> np.ndarray:
    """Euler over log-linear σ, u + s Σ w (c − u), every call of the U-Net with one row: written without the code under test."""
    bar = components.alphas_bar.double()
    t = torch.linspace(999, 0, request.steps, dtype=torch.float64)
    logs = ((1 - bar) / bar).log() / 2
    sigmas = [*(float(np.exp(np.interp(float(x), range(1000), logs.numpy()))) for x in t), 0.0]
    x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(request.seed)) * sigmas[0]
    for i in range(request.steps):
        enter(i)

        def d(context: torch.Tensor, x=x, i=i) -> torch.Tensor:
            noise = components.unet(x / (sigmas[i] ** 2 + 1) ** 0.5, torch.tensor(float(t[i])), encoder_hidden_states=context).sample
            return x - sigmas[i] * noise

        u = d(negative)
        denoised = u + sum(request.guidance * weight * (d(context) - u) for weight, context in conds(i))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    image = (latents.decode(components, x)[0] / 2 + 0.5) * 255
    return image.round().permute(1, 2, 0).numpy().astype(int)


@pytest.fixture(scope="module")
def embed(components):
    """text -> (1, 77 k, width)"""
    return lambda text, **settings: encode(components.tokenizers[0], components.text_encoders[0], [text], **settings).context


@pytest.fixture(scope="module")
def adapter(components) -> Adapter:
    """Strong enough to be seen, on the U-Net and the text encoder."""
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    layers, generator = named_layers(components.modules), torch.Generator().manual_seed(5)

    def update(layer) -> Lora:
        out, inside = layer.weight.shape
        return Lora(torch.randn(4, inside, generator=generator) / 4, torch.randn(out, 4, generator=generator) / 8, 2.0)

    return Adapter({name: update(layers[name]) for name in apply.select(components.modules, ["attention", "text_attention"])}, {})


@pytest.fixture(scope="module")
def folder(components, adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """style.safetensors (all of the adapter) and text.safetensors (what of it is on the text encoder)."""
    place = tmp_path_factory.mktemp("adapters")
    files.save(adapter, place / "style.safetensors")
    files.save(Adapter({n: u for n, u in adapter.layers.items() if n.startswith("text_encoder")}, {}), place / "text.safetensors")
    return place


def test_the_oracle_draws_plain_prompts(components, embed):
    request = Request("a cat", "a dog", seed=3, steps=STEPS)
    expected = by_hand(components, request, lambda step: [(1, embed("a cat"))], embed("a dog"))
    assert difference(pixels(components, [request])[0], expected) <= 1


def test_editing_changes_the_condition_where_a1111_does(components, embed):
    request = Request("a [cat:dog:2]", "[the sun|a robot]", seed=3, steps=6)
    cat, dog = embed("a cat"), embed("a dog")
    odd, even = embed("the sun"), embed("a robot")

    def told(step: int) -> list:
        return [(1, cat if step <= 2 else dog)]

    found = pixels(components, [request])[0]
    others = [np.asarray(pixels(components, [Request(t, seed=3, steps=6)])[0]) for t in ("a cat", "a dog")]
    assert min(difference(found, other) for other in others) > 2
    negatives, slot = [odd, odd, even, odd, even, odd], odd.clone()
    expected = by_hand(components, request, told, slot, enter=lambda step: slot.copy_(negatives[step]))
    assert difference(found, expected) <= 1


def test_and_sums_weighted_guidance(components, embed):
    request = Request("a cat :0.7 AND a dog AND the sun :-0.2", "a robot", seed=3, steps=STEPS, guidance=3.0)
    told = [(0.7, embed("a cat")), (1, embed("a dog")), (-0.2, embed("the sun"))]
    expected = by_hand(components, request, lambda step: told, embed("a robot"))
    assert difference(pixels(components, [request])[0], expected) <= 1


def test_a_weighted_condition_at_guidance_one_needs_the_unconditional_pass(components, embed):
    request = Request("a cat :0.5", "a dog", seed=3, steps=STEPS, guidance=1.0)
    expected = by_hand(components, request, lambda step: [(0.5, embed("a cat"))], embed("a dog"))
    assert difference(pixels(components, [request])[0], expected) <= 1


def test_a_long_prompt_and_a_short_negative_are_not_padded_for_each_other(components, embed):
    request = Request("cat " * 80 + "(dog:1.3) BREAK the sun", "a dog", seed=3, steps=STEPS)
    context = embed(request.prompt)
    assert context.shape[1] == 3 * 77
    expected = by_hand(components, request, lambda step: [(1, context)], embed("a dog"))
    assert difference(pixels(components, [request])[0], expected) <= 1


def test_conditions_of_one_picture_are_levelled_by_their_last_vector(components, embed):
    request = Request("a cat BREAK a dog AND the sun", seed=3, steps=STEPS)
    short = embed("the sun")
    told = [(1, embed("a cat BREAK a dog")), (1, torch.cat([short, short[:, -1:].repeat(1, 77, 1)], dim=1))]
    expected = by_hand(components, request, lambda step: told, embed(""))
    assert difference(pixels(components, [request])[0], expected) <= 1


def test_clip_skip_is_for_both_prompts(components, embed):
    request = Request("a cat", "a dog", seed=3, steps=STEPS, clip_skip=2)
    expected = by_hand(components, request, lambda step: [(1, embed("a cat", clip_skip=2))], embed("a dog", clip_skip=2))
    found = pixels(components, [request])[0]
    assert difference(found, expected) <= 1
    half = by_hand(components, request, lambda step: [(1, embed("a cat", clip_skip=2))], embed("a dog"))
    assert difference(found, half) > 2


MIXED = [
    Request("a cat", seed=1, steps=3),
    Request("a (cat:1.3) AND the sun :0.5", seed=2, steps=3, guidance=3.0),
    Request("[a cat|a dog] BREAK the sun", "a [dog:cat:0.5]", seed=3, steps=3),
    Request("a cat " * 60, seed=4, steps=3),
    Request("a cat:0.5", seed=5, steps=3, guidance=1.0),
    Request("a cat", seed=1, steps=3, clip_skip=2, emphasis="No norm"),
]


def test_a_picture_does_not_depend_on_the_prompts_beside_it(components):
    alone, together = (pixels(components, MIXED, batch=n) for n in (1, 6))
    assert max(difference(a, b) for a, b in zip(alone, together, strict=True)) <= 1


def test_each_text_is_encoded_once_however_many_pictures_and_steps(components):
    calls = []
    requests = [Request("a [cat|dog] AND the sun", "a dog", seed=seed, steps=STEPS) for seed in (1, 2, 3)]
    with components.text_encoders[0].register_forward_hook(lambda m, inputs, output: calls.append(1)):
        pixels(components, requests, batch=1)
    assert len(calls) == 3


def test_composed_is_the_weighted_sum_in_fp64():
    generator = torch.Generator().manual_seed(1)
    c, u = torch.randn(5, 4, 3, 3, generator=generator), torch.randn(3, 4, 3, 3, generator=generator)
    owners, weights, guidance = [0, 1, 1, 1, 2], [1.0, 0.5, -2.0, 0.1, 3.0], torch.tensor([5.0, 1.0, 0.5]).view(-1, 1, 1, 1)
    found = composed(c, u, owners, weights, guidance)
    for i in range(3):
        rows = [(c[j].double(), weights[j]) for j in range(5) if owners[j] == i]
        expected = u[i].double() + float(guidance[i]) * sum(w * (row - u[i].double()) for row, w in rows)
        assert (found[i] - expected).abs().max() < 1e-5


# --- tags and strengths


def test_a_tag_is_the_same_as_the_adapter_by_hand(tiny_base, folder):
    settings = {"seeds": [3], "base": tiny_base, "device": "cpu", "steps": 2}
    tagged, by_file = (
        [np.asarray(p.image).astype(int) for p in pictures]
        for pictures in (
            draw("a <lora:STYLE:0.8>cat", folders=[folder], **settings),
            draw("a cat", {folder / "style.safetensors": 0.8}, **settings),
        )
    )
    plain = [np.asarray(p.image).astype(int) for p in draw("a cat", **settings)]
    assert difference(tagged[0], by_file[0]) == 0 and difference(tagged[0], plain[0]) > 5


def test_every_prompt_has_its_own_tags_and_texts_are_encoded_as_the_adapters_are(components, adapter):
    prompts = ["a cat", "a cat<lora:a:0.8>", "a cat<lora:a:0:1>", "a cat<lora:a:1:0>", "a cat<lora:a:0.8>"]
    requests = [Request(prompt, seed=3, steps=2) for prompt in prompts]
    found = pixels(components, requests, named={"a": adapter})
    weighted = [[], [(adapter, 0.8)], [(adapter, "0:1")], [(adapter, {"unet": 0, "text_encoder": 1})], [(adapter, 0.8)]]
    for picture, chosen in zip(found, weighted, strict=True):
        assert difference(picture, pixels(components, [Request("a cat", seed=3, steps=2)], chosen)[0]) <= 1
    pairs = [(a, b) for a in range(4) for b in range(a)]
    assert min(difference(found[a], found[b]) for a, b in pairs) > 2


@pytest.mark.parametrize("how", ["stacked", "fused"])
def test_a_components_strength_is_that_part_of_the_adapter(components, adapter, how: str):
    request = Request("a cat", seed=3, steps=STEPS)
    unet = Adapter({name: update for name, update in adapter.layers.items() if name.startswith("unet.")}, {})
    text = Adapter({name: update for name, update in adapter.layers.items() if name.startswith("text_encoder.")}, {})
    whole = pixels(components, [request], [(adapter, "unet=0.8:text_encoder=0.3")], how)[0]
    assert difference(whole, pixels(components, [request], [(unet, 0.8), (text, 0.3)], how)[0]) == 0


def test_a_strength_changes_with_the_steps_in_the_unet_and_in_the_text(components, embed, adapter):
    request = Request("a cat", "a dog", seed=3, steps=STEPS)
    found = pixels(components, [request], [(adapter, "0.8@0.25-0.75,0.3@0.75-1")])[0]
    etas = [0.0, 0.8, 0.8, 0.3]
    contexts = {}
    for eta in set(etas):
        with apply.stacked(components.modules, [(adapter, eta)]) if eta else nullcontext():
            contexts[eta] = (embed("a cat").clone(), embed("a dog").clone())
    slot = contexts[0.8][1].clone()
    with apply.stacked(components.modules, [(adapter, 0.8)]) as stack:

        def enter(step: int) -> None:
            stack.set_strengths([etas[step]])
            slot.copy_(contexts[etas[step]][1])

        expected = by_hand(components, request, lambda step: [(1, contexts[etas[step]][0])], slot, enter)
    assert difference(found, expected) <= 1
    assert difference(found, pixels(components, [request], [(adapter, 0.8)])[0]) > 2


def test_a_strength_of_the_steps_is_refused_for_fused_adapters(components, adapter):
    with pytest.raises(SdloraError, match="changes with the steps.*stacked"):
        generate(components, [Request("a cat")], [(adapter, "0.8@0-0.5")], "fused")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a <lora:x"}, "no complete tag"),
        ({"prompt": "a", "negative": "<lora:x:1>"}, "negative prompt"),
        ({"prompt": "a", "clip_skip": 0}, "clip_skip"),
        ({"prompt": "a", "emphasis": "None at all"}, "emphasis"),
    ],
)
def test_impossible_requests_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(SdloraError, match=message):
        Request(**settings)


def test_tags_without_adapters_and_skips_beyond_the_encoder_are_refused_before_drawing(components, adapter):
    with pytest.raises(SdloraError, match="<lora:stile:1>.*did you mean style"):
        generate(components, [Request("a <lora:stile>")], named={"style": adapter})
    with pytest.raises(SdloraError, match="clip skip is 9"):
        generate(components, [Request("a", clip_skip=9)])


# --- the command


@pytest.fixture
def run(tiny_base: Path, tmp_path: Path):
    import typer

    from sdlora.commands import generate as command

    app = typer.Typer()
    command.register(app)
    common = ["--base", str(tiny_base), "--steps", "2", "--device", "cpu", "--output", str(tmp_path)]
    return lambda *arguments: CliRunner().invoke(app, [*common, *map(str, arguments)], catch_exceptions=False).output


def test_the_command_finds_tags_in_folders_and_writes_down_what_they_were(run, folder: Path, tmp_path: Path):
    prompt = "a cat<lora:style:unet=0.8@0-0.5:te=0.5>"
    run(prompt, "--adapters", folder, "--clip-skip", "2", "--emphasis", "No norm", "--adapter", f"{folder}/text.safetensors=te=0.1:unet=0")
    found = read_settings(tmp_path / "0001-seed1.png")
    assert (found["prompt"], found["clip_skip"], found["emphasis"]) == (prompt, 2, "No norm")
    given, tag = found["adapters"]
    assert (given["file"], given["strength"]) == ("text.safetensors", "te=0.1:unet=0")
    assert (tag["file"], tag["strength"], tag["tag"]) == ("style.safetensors", "te=0.5:unet=0.8@0-0.5", "style")
    assert len(tag["sha256"]) == 64
    text = Image.open(tmp_path / "0001-seed1.png").info["parameters"]
    assert (
        text.startswith(f"{prompt} <lora:text:te=0.1:unet=0>\n")
        and "Clip skip: 2, RNG: CPU, Lora hashes:" in text
        and "Emphasis: No norm" in text
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a<lora:style:1>"], "--adapters FOLDER"),
        (["a<lora:stile:1>", "--adapters", "FOLDER"], r"no stile\.safetensors in .*did you mean style"),
        (["a<lora:style:1>", "--adapters", "nowhere"], "no folder nowhere"),
        (["a", "--adapter", "FOLDER/style.safetensors=unet=x"], "'x' is no strength"),
        (["a", "--adapter", "FOLDER/style.safetensors=0.5@0-0.5", "--apply", "fused"], "stacked"),
        (["a", "--clip-skip", "7"], "clip skip is 7"),
        (["a", "--emphasis", "Norm"], "No norm"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_picture(run, folder: Path, tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(SdloraError, match=message) as error:
        run(*(argument.replace("FOLDER", str(folder)) for argument in arguments))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.png"))


def test_a_tag_of_another_kind_is_a_warning_and_no_part_of_the_picture(run, tmp_path: Path):
    assert "<hypernet:x:1> is left out" in run("a cat<hypernet:x:1>", "--seed", "1")
    run("a cat", "--seed", "1")
    assert Image.open(tmp_path / "0001-seed1.png").tobytes() == Image.open(tmp_path / "0002-seed1.png").tobytes()
