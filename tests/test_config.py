"""Settings: from TOML and overrides, with errors that name what, where and the nearest valid name."""

from pathlib import Path

import pytest

from sdlora import config
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig

BASIC = 'images = "pictures"\noutput = "../runs/x"\n'


@pytest.fixture
def toml(tmp_path):
    def write(text: str = BASIC) -> Path:
        folder = tmp_path / "configs"
        folder.mkdir(exist_ok=True)
        path = folder / "a.toml"
        path.write_text(text)
        return path

    return write


def test_four_lines_suffice(toml):
    settings = config.load(TrainConfig, toml(BASIC + 'base = "emoji"\ntrigger = "sks"\n'))
    assert settings.triggers == ("sks",) and settings.settled().learning_rate == 2e-3


def test_paths_in_a_file_start_at_the_file_and_paths_in_an_override_at_the_current_folder(toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config.load(TrainConfig, toml(BASIC + 'base = "../models/sd"'), ["output=elsewhere"])
    assert settings.images == tmp_path / "configs" / "pictures"
    assert settings.output == tmp_path / "elsewhere"
    assert settings.base == str(tmp_path / "models" / "sd")
    assert config.load(TrainConfig, toml(), ["base=emoji"]).base == "emoji"


def test_a_hub_id_stays_one_unless_there_is_such_a_path(toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    text = BASIC + f'base = "{name}"'
    assert config.load(TrainConfig, toml(text)).base == config.load(TrainConfig, toml(), [f"base={name}"]).base == name
    assert config.load(TrainConfig, toml(BASIC + 'base = "models/a.safetensors"')).base == str(tmp_path / "configs/models/a.safetensors")
    assert config.load(TrainConfig, toml(BASIC + 'base = "a/b/c"')).base == str(tmp_path / "configs/a/b/c")
    (tmp_path / name).mkdir(parents=True)  # at hand from here, and not beside the file: then the file's own words are a path
    assert config.load(TrainConfig, toml(text)).base == str(tmp_path / "configs" / name)
    assert config.load(TrainConfig, toml(), [f"base={name}"]).base == str(tmp_path / name)


def test_overrides_reach_into_tables_and_keep_the_rest(toml):
    text = BASIC + '[prior]\nprompts = ["a cat"]\nweight = 0.5\n'
    settings = config.load(TrainConfig, toml(text), ["steps=24", "prior.weight=2", "save_every=6", 'targets=["attention", "text_mlp"]'])
    assert (settings.steps, settings.save_every, settings.prior.weight, settings.prior.prompts) == (24, 6, 2.0, ("a cat",))
    assert settings.targets == ("attention", "text_mlp")


def test_words_that_look_like_numbers_stay_words_where_words_are_wanted(toml):
    settings = config.load(TrainConfig, toml(), ["name=2026", "caption=true", "output=7", "trigger=zorbot robot"])
    assert (settings.name, settings.caption, settings.output.name, settings.triggers) == ("2026", "true", "7", ("zorbot robot",))


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (BASIC + "rnak = 4", [], ["unknown setting rnak", "a.toml", "did you mean rank?"]),
        (BASIC + "[prior]\nwieght = 4", [], ["unknown setting prior.wieght", "did you mean prior.weight?"]),
        (BASIC, ["lerning_rate=1"], ["unknown setting lerning_rate in 'lerning_rate=1'", "learning_rate?"]),
        (BASIC + 'steps = "x"', [], ["steps is 'x', a str in", "a.toml", "valid integer"]),
        (BASIC, ["steps=8.5"], ["steps is 8.5 in 'steps=8.5'", "integer"]),
        (BASIC, ["steps=0"], ["steps is 0", "greater than or equal to 1"]),
        (BASIC, ["rank=0"], ["rank is 0"]),
        (BASIC, ["learning_rate=-1e-3"], ["learning_rate is -0.001", "greater than 0"]),
        (BASIC, ["learning_rate=nan"], ["learning_rate"]),
        (BASIC, ["schedule=cosin"], ["schedule is 'cosin'", "did you mean cosine?"]),
        (BASIC, ['targets=["atention"]'], ["'atention'", "did you mean attention?"]),
        (BASIC, ["targets=[]"], ["targets is empty"]),
        (BASIC, ["steps"], ["'steps'", "key=value"]),
        (BASIC, ["prior=3"], ["prior is 3"]),
        ('output = "x"', [], ["images is missing"]),
        ("steps = = 3", [], ["a.toml is not valid TOML"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(toml, text, overrides, words):
    with pytest.raises(SdloraError) as caught:
        config.load(TrainConfig, toml(text), overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(SdloraError, match="cannot read the settings file"):
        config.load(TrainConfig, tmp_path / "no.toml")


def test_settings_survive_being_written(toml, tmp_path):
    awkward = 'caption = "a \\"b\\" \\\\ \\n ü"\n[prior]\nprompts = ["x", "y"]\n'
    one = config.load(TrainConfig, toml(BASIC + awkward), ["learning_rate=1e-9", "alpha=3"])
    path = tmp_path / "again.toml"
    path.write_text(config.dumps(one), encoding="utf-8")
    assert config.load(TrainConfig, path) == one


def test_every_config_of_the_repository_is_valid():
    root = Path(__file__).parents[1]
    found = sorted((root / "configs").glob("emoji-*.toml"))
    assert len(found) >= 3
    for path in found:
        settings = config.load(TrainConfig, path)
        assert settings.images.parent == root / "datasets" and settings.images.is_dir()
