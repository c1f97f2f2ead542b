"""Drawings from settings files and files of prompts; runs that draw what is missing, however they were broken off."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdlora import generation, images
from sdlora.drawing import Drawing, carry_out, requests, settings, work
from sdlora.drawing.prompt_files import requests as of_file
from sdlora.drawing.translate import PLAIN, TRANSLATED
from sdlora.errors import SdloraError
from sdlora.generation import Request

pytestmark = pytest.mark.usefixtures("forgetful")

ROOT = Path(__file__).parents[1]


def test_every_setting_of_a_picture_reaches_the_request_or_is_translated():
    assert set(settings.scope(settings.PICTURE)) == set(PLAIN) | TRANSLATED
    untold = {f for f in Request.__dataclass_fields__} - set(settings.scope(settings.PICTURE)) - {"adapters", "tagged"}
    assert not untold, f"{untold} can be said in Python alone; give it a row in sdlora/drawing/settings.py"


def test_defaults_of_settings_are_the_requests():
    (made,) = requests(Drawing(prompt=("a",)))
    assert made == Request("a", seed=1)


def test_a_settings_file_says_what_the_command_line_can_and_the_command_line_wins(tmp_path: Path, adapter_files: Path):
    text = f'prompt = "a cat"\nseed = "1-3"\nsteps = 7\nadapter = ["{adapter_files}/style.safetensors=0.5"]\noutput = "out"\ncrop = "8x4"\n'
    (tmp_path / "a.toml").write_text(text)
    drawing, found = work.gathered({"steps": 3, "guidance": 2.0}, tmp_path / "a.toml")
    assert found is None and drawing.output == tmp_path / "out"
    made = requests(drawing)
    assert [(r.seed, r.steps, r.guidance, r.crop) for r in made] == [(seed, 3, 2.0, (8, 4)) for seed in (1, 2, 3)]
    ((path, eta),) = made[0].adapters
    assert (path, eta.number) == (str(adapter_files / "style.safetensors"), 0.5)


def test_relative_adapters_of_a_settings_file_start_at_its_folder(adapter_files: Path, tmp_path: Path, monkeypatch):
    (adapter_files / "a.toml").write_text('prompt = ["a", "b"]\nadapter = ["style.safetensors=te=0.5@0-0.5:unet=1"]\nadapters = ["."]\n')
    monkeypatch.chdir(tmp_path)
    drawing, _ = work.gathered({}, adapter_files / "a.toml")
    assert drawing.adapter == (f"{adapter_files}/style.safetensors=te=0.5@0-0.5:unet=1",) and drawing.adapters == (adapter_files,)
    assert len(requests(drawing)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stepz = 3\nprompt = "a"', "unknown setting stepz in .*did you mean steps"),
        ('steps = "3"\nprompt = "a"', "steps is '3'"),
        ("steps = 3", "no prompt"),
        ("steps 3", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_settings_file_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SdloraError, match=message) as error:
        requests(work.gathered({}, tmp_path / "a.toml")[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_a_run", [False, True])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 200}, "quality is 200"),
        ({"batch": -1}, "batch is -1; it has to be at least 1"),
        ({"preview": 0}, "preview is 0"),
        ({"adapter_memory": "much"}, "is no amount of memory"),
        ({"adapter": ("broken.safetensors",)}, "broken.safetensors .* is cut off"),
        ({"init": Path("gone.png"), "width": 32, "height": 32}, "there is no picture gone.png"),
        ({"init": Path("here.png"), "mask": "gone.png"}, "there is no picture gone.png"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_before_there_is_a_bar(
    tmp_path: Path, tiny_base: Path, monkeypatch, settings: dict, message: str, in_a_run: bool
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("here.png")
    Path("broken.safetensors").write_bytes(b"broken")
    Path("prompts.txt").write_text("a cat", encoding="utf-8")
    what = {"prompts": Path("prompts.txt")} if in_a_run else {"prompt": ("a cat",)}
    drawing = Drawing(base=str(tiny_base), steps=2, output=tmp_path / "out", **what, **settings)
    with pytest.raises(SdloraError, match=message):
        work.drawn_and_saved(drawing, lambda text: None, lambda total: pytest.fail("a bar"))


def listed(path: Path, **said) -> list[Request]:
    return of_file(Drawing(prompts=path, **said))


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeffa cat\n\n  # a dog \nκαι\r\n")
    assert [(r.prompt, r.seed) for r in listed(tmp_path / "a.txt", seed="3-4")] == [
        *[("a cat", 3), ("a cat", 4), ("# a dog", 3), ("# a dog", 4), ("και", 3), ("και", 4)],
    ]


def test_a_json_line_says_any_setting_of_its_own(tmp_path: Path, adapter_files: Path):
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "seed": 9, "steps": 4},
        {"prompt": ["c", "d"], "adapter": ["style.safetensors=0.5"], "seed": "1,2"},
    ]
    path = adapter_files / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = listed(path, steps=6)
    assert [(r.prompt, r.seed, r.steps) for r in found] == [("a", 1, 6), ("b", 9, 4), ("c", 1, 6), ("c", 2, 6), ("d", 1, 6), ("d", 2, 6)]
    assert found[-1].adapters[0][0] == str(adapter_files / "style.safetensors")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', r"not JSON in line 2 of .*a\.jsonl"),
        ("a.jsonl", '{"prompt": "a", "stpes": 3}', "unknown setting stpes in line 1 of .*did you mean steps"),
        ("a.jsonl", '{"prompt": "a", "base": "x"}', "base in line 1 of .* holds for all pictures"),
        ("a.jsonl", '["a"]', "no JSON object in line 1"),
        ("a.jsonl", '{"seed": 1}', "no prompt in line 1"),
        ("a.txt", "a\nb <lora:", "in line 2"),
        ("a.txt", "\n \n", "has no prompts"),
        ("b.txt", None, "cannot read .*b.txt: .* it should be a text file with a prompt a line"),
    ],
)
def test_a_mistake_in_a_prompt_file_names_its_line(tmp_path: Path, name: str, text: str | None, message: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SdloraError, match=message) as error:
        listed(tmp_path / name)
    assert "\n" not in str(error.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_draws_what_is_missing_and_nothing_twice(tmp_path: Path, tiny_base: Path):
    (tmp_path / "a.txt").write_text("a cat\na dog\na cat\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, seed="1-2", output=tmp_path / "out")
    assert [path.name for path in carry_out(drawing)] == ["0001-seed1.png", "0002-seed2.png", "0003-seed1.png", "0004-seed2.png"]
    assert names(tmp_path / "out")[4:] == ["manifest.json"]
    data = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    (tmp_path / "out" / "0003-seed1.png").unlink()
    (tmp_path / "a.txt").write_text("a sun\na cat\na dog\n")  # a new prompt in front: the others keep their names
    assert [path.name for path in carry_out(drawing)] == ["0005-seed1.png", "0006-seed2.png", "0003-seed1.png"]
    assert all((tmp_path / "out" / name).read_bytes() == old for name, old in data.items() if name != "manifest.json")
    assert carry_out(drawing) == []


def test_a_full_disk_in_the_middle_of_a_run_says_how_far_it_came_and_loses_nothing(tmp_path: Path, tiny_base: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat\na dog\na sun\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, output=tmp_path / "out")
    real, calls = images.save, []

    def full(image, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise SdloraError(f"cannot write {path}: No space left on device; make room")
        real(image, path, *rest)

    monkeypatch.setattr(images, "save", full)
    with pytest.raises(SdloraError, match=r"No space left.* \(1 of 3 pictures are drawn; the same command goes on\)"):
        carry_out(drawing)
    assert names(tmp_path / "out") == ["0001-seed1.png", "manifest.json"]
    assert [path.name for path in carry_out(drawing)] == ["0002-seed1.png", "0003-seed1.png"]


def test_a_picture_that_turns_into_nan_leaves_the_others_of_the_run_in_peace(tmp_path: Path, tiny_base: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat\na dog\na sun\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, batch=1, output=tmp_path / "out")
    real = generation.generate

    def spoilt(components, wanted, **ways):
        yield from real(components, [r for r in wanted if r.prompt != "a dog"], **ways)
        if any(r.prompt == "a dog" for r in wanted):
            raise SdloraError("the picture of 'a dog' turned into NaN")

    monkeypatch.setattr(generation, "generate", spoilt)
    with pytest.raises(SdloraError, match=r"'a dog' turned into NaN \(2 of 3 pictures are drawn, 1 are not\)"):
        carry_out(drawing)
    assert names(tmp_path / "out") == ["0001-seed1.png", "0003-seed1.png", "manifest.json"]


def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path, tiny_base: Path, adapter_files: Path):
    """Whole batches are drawn again, so that even the rounding that neighbours with other adapters cause is the same."""
    lines = [{"prompt": "a cat", "seed": i, "adapter": [f"{name}.safetensors={0.2 * i}"]} for i in (1, 2, 3) for name in ("style", "text")]
    (adapter_files / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    drawing = Drawing(prompts=adapter_files / "run.jsonl", base=str(tiny_base), steps=2, output=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in carry_out(drawing)}
    for name in ("0002-seed1.png", "0003-seed2.png", "0006-seed3.png"):
        (tmp_path / "out" / name).unlink()
    assert len(carry_out(drawing)) == 3
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "pictures": {"a": {}}}', '{"version": 2, "pictures": {}}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str):
    from sdlora.drawing import runs

    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SdloraError, match=r"manifest\.json") as error:
        runs.read(tmp_path)
    assert "\n" not in str(error.value)


def test_shares_of_a_crew_are_everything_once_and_in_order():
    from sdlora.drawing.crew import Crew

    for size in (1, 2, 3, 7):
        shares = [Crew("cpu", rank, size).share(range(17)) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(17))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


LOGGING = """
import os, signal, sys
from pathlib import Path
from sdlora import cli, images

plain = images.save

def save(image, path, *rest):
    plain(image, path, *rest)
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.environ['RANK']} {Path(path).name}\\n")
    if os.environ["FAILS"] and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

images.save = save
cli.program(["generate", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_two_processes_share_a_run_and_where_one_is_killed_the_next_two_draw_the_rest(tmp_path: Path, tiny_base: Path):
    (tmp_path / "a.txt").write_text("".join(f"a cat {i}\n" for i in range(9)))
    (tmp_path / "drawing_log.py").write_text(LOGGING)
    how = {"prompts": tmp_path / "a.txt", "base": tiny_base, "steps": 2, "guidance": 1, "device": "cpu", "batch": 2}
    words = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "drawing_log.py")]

    def draw(way: list[str], output: str, fails: str = "") -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOG": str(tmp_path / "log"), "FAILS": fails}
        program = [sys.executable, *way, *words, "--output", str(tmp_path / output)]
        return subprocess.run(program, env=environment, capture_output=True, text=True)

    one = draw([str(ROOT / "infer" / "generate.py")], "one")
    killed = draw(torchrun, "two", "killed")
    assert one.returncode == 0 and killed.returncode != 0, one.stderr + killed.stderr
    assert re.findall("^error: .*", killed.stderr, re.MULTILINE) == [
        "error: one of the 2 processes was killed, or crashed; the same command goes on from what is saved"
    ]
    assert "[rank" not in killed.stderr, "a traceback of ours"
    before = {path.name for path in (tmp_path / "two").glob("*.png")}  # one may be there that its process was ended before it wrote down
    assert 1 <= len(before) < 9 and before >= {name for name in (tmp_path / "log").read_text().split()[1::2]}
    (tmp_path / "log").unlink()
    rest = draw(torchrun, "two")
    assert rest.returncode == 0, rest.stderr
    bytes_of_one, bytes_of_two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(bytes_of_one) == 10 and bytes_of_one == bytes_of_two
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(name for _, name in log) == sorted(name for name in bytes_of_one if name.endswith(".png") and name not in before)
    assert {rank for rank, _ in log} == {"0", "1"}
    assert all(rest.stdout.count(name) == 1 for _, name in log), "the second process says nothing of its own"


def test_there_is_no_bar_where_nothing_is_left_to_draw(capsys):
    from sdlora.commands.drawing_options import bar

    with bar(0) as move:
        move(0)
    nothing = capsys.readouterr().err
    with bar(2) as move:
        move(2)
    assert nothing == "" and "2/2 steps" in capsys.readouterr().err
