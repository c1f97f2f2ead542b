"""Grids: which cells there are, in how few batches they are drawn, what is refused; and previews of what is being drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora import files, latents
from sdlora.commands import grid as command
from sdlora.drawing import Drawing, Grid, preview
from sdlora.drawing.axes import Axis, checkpoints, spread, values
from sdlora.drawing.batches import batches
from sdlora.drawing.sweep import swept
from sdlora.errors import SdloraError
from sdlora.generation import Request, State, generate


@pytest.fixture
def style(components, random_adapter, tmp_path: Path) -> Path:
    return files.save(random_adapter(components.modules), tmp_path / "style.safetensors")


def drawing(tiny_base: Path, tmp_path: Path, **further) -> Drawing:
    return Drawing(**{"prompt": ("a cat",), "base": str(tiny_base), "steps": 1, "guidance": 1.0, "output": tmp_path / "out", **further})


# --- axes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:1.2:0.2", [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
        ("10:30:10", [10, 20, 30]),
        ("1:0:-0.5", [1, 0.5, 0]),
        ("0.1:0.35:0.1", [0.1, 0.2, 0.3]),
    ],
)
def test_a_range_has_its_ends_and_no_rounding(text, wanted):
    assert spread(text) == wanted


@pytest.mark.parametrize("text", ["1:0:0.1", "0:1:0", "a:b:c", "0:1000000:0.001", "0:inf:1", "nan:1:1"])
def test_a_range_that_is_none_is_one_line(text):
    with pytest.raises(SdloraError, match="range") as error:
        spread(text)
    assert "\n" not in str(error.value)


def test_values_are_lists_ranges_seeds_or_parts_between_commas():
    assert values("steps", [3, 4]) == [3, 4] and values("steps", "3,4") == [3, 4] and values("sampler", "Euler, DDIM") == ["Euler", "DDIM"]
    assert values("seed", "1-3") == ["1", "2", "3"] and values("strength", "0, 0.5@0-0.5") == [0, "0.5@0-0.5"]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (("stpes", (1,)), "unknown axis 'stpes'; did you mean steps"),
        (("steps", ()), "has 0 values"),
        (("checkpoint", ("nowhere",)), "no checkpoint nowhere"),
        (("steps", (1, 2), None, ("one",)), "2 values and 1 labels"),
    ],
)
def test_a_wrong_axis_is_one_line(axis, message):
    with pytest.raises(SdloraError, match=message):
        Axis(*axis)


def test_a_runs_folder_stands_for_its_checkpoints_in_their_order(tmp_path: Path):
    for name in ("step-000020", "step-000003", "adapter", "other"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [Path(file).stem for file in checkpoints(tmp_path)] == ["step-000003", "step-000020", "adapter"]
    assert Axis("checkpoint", (str(tmp_path),)).label(0) == "step-000003"


def test_cells_have_x_innermost_and_every_kind_of_axis_acts(style: Path, tmp_path: Path):
    one = Drawing(prompt=("a cat in a hat",), adapter=(f"{style}=0.5",))
    grid = Grid(one, Axis("replace", ("cat", "dog")), Axis("strength", (0, "unet=0.3")), Axis("sampler", ("Euler", "DDIM")))
    found = [(r.prompt, str(r.adapters[0][1]), r.sampler) for _, r in grid.cells()]
    texts = ("a cat in a hat", "a dog in a hat")
    assert found == [(text, eta, sampler) for sampler in ("Euler", "DDIM") for eta in ("0", "unet=0.3") for text in texts]


def test_a_replacement_acts_in_each_prompt_of_another_axis():
    grid = Grid(Drawing(), Axis("replace", ("red", "blue")), Axis("prompt", ("a red cat", "a red dog")))
    assert [r.prompt for _, r in grid.cells()] == ["a red cat", "a blue cat", "a red dog", "a blue dog"]


def test_a_strength_belongs_to_the_checkpoint_of_its_cell(components, random_adapter, tmp_path: Path):
    first = [str(files.save(random_adapter(components.modules, seed=i), tmp_path / f"step-{i}.safetensors")) for i in (1, 2)]
    grid = Grid(Drawing(prompt=("a",)), Axis("strength", (0.5, 1)), Axis("checkpoint", tuple(first)))
    assert [(path, eta.number) for _, r in grid.cells() for path, eta in r.adapters] == [(f, eta) for f in first for eta in (0.5, 1.0)]


@pytest.mark.parametrize(
    ("settings", "axes", "message"),
    [
        ({"prompt": ("a", "b")}, [Axis("steps", (1, 2))], 'a cell of the grid is 2 pictures; put the several on an axis = "prompt"'),
        ({"seed": "1-3"}, [Axis("steps", (1, 2))], 'axis = "seed"'),
        ({"prompts": Path("many.txt")}, [Axis("steps", (1, 2))], "a grid with prompts = 'many.txt'.*put its lines on an axis"),
        ({}, [Axis("steps", (1,)), Axis("steps", (2,))], "two axes steps"),
        ({}, [Axis("replace", ("dog", "cat"))], "looks for 'dog', which is in no prompt"),
        ({}, [Axis("strength", (0, 1))], "the axis strength and no adapter; give one"),
        ({}, [Axis("steps", ("many",))], "steps is 'many'"),
        ({}, [Axis("guidance", (-1,))], "guidance is -1"),
        ({}, [Axis("seed", tuple(range(150))), Axis("steps", tuple(range(1, 150)))], "22,350 cells"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_one_line(settings, axes, message):
    with pytest.raises(SdloraError, match=message) as error:
        Grid(Drawing(**{"prompt": ("a cat",), **settings}), *axes).cells()
    assert "\n" not in str(error.value)


# --- drawing


def test_requests_that_can_share_a_batch_are_brought_together(components):
    wanted = [Request("a", seed=i, steps=steps, guidance=guidance) for i in range(3) for steps in (4, 8) for guidance in (1.0, 3.0, 5.0)]
    together = batches(components, wanted, "stacked")
    assert sorted(i for batch in together for i in batch) == list(range(18))
    assert [len(batch) for batch in together] == [3, 4, 2, 3, 4, 2]  # by steps and guided or not, four of 64 px at a time
    for batch in together:
        assert len({(wanted[i].steps, wanted[i].guided) for i in batch}) == 1
    assert [len(batch) for batch in batches(components, wanted, "stacked", 2)] == [2, 1, 2, 2, 2, 2, 1, 2, 2, 2]


def test_pictures_with_several_adapters_share_batches_where_these_are_stacked(components):
    wanted = [Request("a <lora:b:0.5>" if i % 2 else "a", adapters=(("a.safetensors", float(i)),), seed=i) for i in range(4)]
    assert [len(batch) for batch in batches(components, wanted, "stacked")] == [4]
    assert [len(batch) for batch in batches(components, wanted, "fused")] == [1] * 4


def test_a_grid_is_drawn_in_few_batches_and_every_cell_is_the_picture_it_would_be_alone(
    components, tiny_base: Path, tmp_path: Path, monkeypatch
):
    calls: list[int] = []
    forward = type(components.unet).forward
    monkeypatch.setattr(type(components.unet), "forward", lambda self, x, *a, **k: (calls.append(len(x)), forward(self, x, *a, **k))[1])
    grid = Grid(drawing(tiny_base, tmp_path), Axis("steps", (1, 2)), Axis("seed", (1, 2, 3)))
    drawn = grid.draw()
    assert sum(calls) == 3 * 1 + 3 * 2 and len(calls) == 3  # two batches of three: one with one step, one with two
    assert [path.name for path in drawn.sheets] == ["grid.png"] and len(drawn.new) == 6
    cells = json.loads((tmp_path / "out" / "grid.json").read_text())
    assert cells["axes"] == {"x": ["steps 1", "steps 2"], "y": ["seed 1", "seed 2", "seed 3"]}
    for (_, request), name in zip(grid.cells(), [name for row in cells["cells"][0] for name in row], strict=True):
        (alone,) = generate(components, [request])
        difference = np.abs(np.asarray(Image.open(tmp_path / "out" / name)).astype(int) - np.asarray(alone.image))
        assert difference.max() <= 1 and difference.sum() < 10  # rounding, which a batch of three has a little of


def test_a_grid_that_grows_draws_its_new_cells_alone_and_z_has_a_sheet_for_each_value(tiny_base: Path, tmp_path: Path):
    one = drawing(tiny_base, tmp_path)
    assert len(Grid(one, Axis("seed", (1, 2))).draw().new) == 2
    drawn = Grid(one, Axis("seed", (1, 2, 3)), None, Axis("clip_skip", (1, 2))).draw()
    assert (len(drawn.new), drawn.cells, [path.name for path in drawn.sheets]) == (4, 6, ["grid-1.png", "grid-2.png"])


def test_a_grid_over_models_loads_each_of_them(tiny_base: Path, tmp_path: Path):
    drawn = Grid(drawing(tiny_base, tmp_path), Axis("precision", ("fp32", "bf16"))).draw()
    one, two = (np.asarray(Image.open(path)).astype(int) for path in drawn.new)
    assert (one != two).any() and abs(one - two).mean() < 32


def test_the_grid_command_reads_a_file_and_says_where_the_sheets_are(command_line, tiny_base: Path, style: Path, tmp_path: Path):
    text = f'title = "A title"\nprompt = "a cat"\nadapter = ["{style.name}"]\nbase = "{tiny_base}"\noutput = "out"\nguidance = 1.0\n'
    (tmp_path / "g.toml").write_text(text + '[x]\naxis = "strength"\nvalues = "0:1:0.5"\n[y]\naxis = "seed"\nvalues = "1-2"\n')
    said = command_line(command, "grid")(tmp_path / "g.toml", "--steps", 1)
    assert f"{tmp_path}/out/grid.png" in said and "6 cells, 6 of them drawn now" in said
    assert "6 cells, 0 of them drawn now, 6 there before" in command_line(command, "grid")(tmp_path / "g.toml", "--steps", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt = "a"', r"has no \[x\]"),
        ('prompt = "a"\n[x]\naxis = "steps"', r"in \[x\] of .* is no axis"),
        ('prompt = "a"\n[x]\naxis = "steps"\nvalues = [1]\nlable = 2', "unknown setting lable .*did you mean labels"),
        ('promt = "a"\n[x]\naxis = "steps"\nvalues = [1]', "unknown setting promt"),
    ],
)
def test_a_mistake_in_a_grid_file_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(SdloraError, match=message):
        Grid.read(tmp_path / "g.toml")


def test_a_sweep_has_strengths_across_prompts_down_and_seeds_on_sheets(style: Path):
    grid = swept(style, ("a", "b"), "0:1:0.5", {"seed": "1-2", "steps": 3})
    assert grid.shape == (3, 2, 2) and (grid.x.name, grid.y.name, grid.z.name) == ("strength", "prompt", "seed")
    assert swept(style, ("a",), "0,1", {"seed": "1-2"}).y.name == "seed" and swept(style, ("a",), "0,1", {}).y is None
    with pytest.raises(SdloraError, match="no adapter nowhere"):
        swept(Path("nowhere"), ("a",), "0,1", {})


# --- previews


def test_the_fit_is_the_best_linear_one(components):
    """Nothing in the fit's residuals is left that latents could explain: numpy's own solution has no smaller error."""
    codes = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    fitted = preview.Preview.fitted(components, codes)
    shapes = preview.coloured_shapes(preview.SAMPLES, preview.SIDE * components.factor)
    with torch.no_grad():
        parts = [(latents.encode_image(components, shapes), shapes, 1.0), (codes[:1], latents.decode(components, codes[:1]), preview.OWN)]
    a, b, w = [], [], []
    for z, pixels, weight in parts:
        small = pixels.reshape(len(pixels), 3, z.shape[2], components.factor, z.shape[3], components.factor).mean((3, 5))
        a.append(z.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy())
        b.append(small.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy())
        w.append(np.full(len(a[-1]), weight / len(a[-1])) ** 0.5)
    x, y, scale = np.concatenate(a), np.concatenate(b), np.concatenate(w)[:, None]
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))] * scale, y * scale, rcond=None)[0]
    np.testing.assert_allclose(np.c_[fitted.weight.numpy(), fitted.bias.numpy()].T, best, atol=1e-4)


def test_a_preview_comes_every_so_many_steps_and_at_the_end(components, tmp_path: Path):
    shown: list[tuple[int, tuple[int, int], int]] = []

    def show(pictures: list[Image.Image], state: State) -> None:
        shown.append((state.step, pictures[0].size, len(pictures)))

    wanted = [Request("a cat", seed=seed, steps=5, guidance=1.0, width=80) for seed in (1, 2)]
    plain = [np.asarray(p.image) for p in generate(components, wanted)]
    seen = [np.asarray(p.image) for p in generate(components, wanted, callback=preview.each(components, 2, show))]
    assert shown == [(2, (20, 16), 2), (4, (20, 16), 2), (5, (20, 16), 2)]
    assert all((one == two).all() for one, two in zip(plain, seen, strict=True))
    with pytest.raises(SdloraError, match="preview is 0"):
        preview.each(components, 0, show)


def test_previews_in_a_file_are_whole_and_a_full_disk_does_not_stop_the_picture(components, tmp_path: Path, monkeypatch):
    write = preview.to_file(components, tmp_path / "preview.png", 1)
    state = State(1, 2, torch.zeros(5, 4, 16, 16), torch.zeros(5, 4, 16, 16))
    write(state)
    with Image.open(tmp_path / "preview.png") as image:
        assert image.size == (4 * 256, 2 * 256)
    (tmp_path / "preview.png").unlink()
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
    write(state)
    assert list(tmp_path.iterdir()) == []


def test_every_batch_has_a_fit_of_its_own_and_one_to_nan_stops_nothing(components, monkeypatch):
    """A batch of few steps, then one of many, whose first preview comes later in it than the other's did."""
    fits: list[float] = []
    fitted = preview.Preview.fitted.__func__
    monkeypatch.setattr(
        preview.Preview, "fitted", classmethod(lambda cls, c, codes: fits.append(codes.mean().item()) or fitted(cls, c, codes))
    )
    images: list[np.ndarray] = []
    after = preview.each(components, 4, lambda pictures, state: images.append(np.asarray(pictures[0])))
    for steps, value in ((2, 0.5), (4, float("nan")), (8, 0.25)):
        for step in range(1, steps + 1):
            x = torch.full((1, 4, 16, 16), value)
            after(State(step, steps, x, x))
    assert fits == pytest.approx([0.5, float("nan"), 0.25], nan_ok=True) and len(images) == 4
    assert not images[1].any() and images[3].shape == (16, 16, 3)


@pytest.mark.slow
def test_a_preview_looks_like_the_picture_on_the_embedded_base():
    """Most of the variance of the decoded picture, seen at the size of the preview (0.89 when this was written)."""
    from sdlora import models

    base = models.load("emoji")
    last: list[State] = []
    (picture,) = generate(base, [Request("a cat face, flat emoji", seed=1, steps=8)], callback=last.append)
    fitted = preview.Preview.fitted(base, last[3].denoised)
    seen = np.asarray(fitted.images(last[-1].x)[0]).astype(float)
    true = np.asarray(picture.image.resize((16, 16), Image.Resampling.BOX)).astype(float)
    assert 1 - ((seen - true) ** 2).sum() / ((true - true.mean((0, 1))) ** 2).sum() > 0.85
