"""Settings of a training's data: contradictions are refused, tables of folders are read and written, the run knows them."""

import pytest

from sdlora import config as settings_files
from sdlora import training
from sdlora.data import fingerprint
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, sources


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keep_tokens": 2}, "keep_tokens has no effect without shuffle_tags or tag_dropout"),
        ({"caption_variants": 2}, "caption_variants has no effect"),
        ({"crops": 2}, 'crops has no effect without crop = "random"'),
        ({"buckets": {"on": False, "step": 64}}, "buckets.step has no effect without buckets"),
        ({"buckets": {"smallest": 64, "largest": 32}}, "buckets.smallest is 64 and buckets.largest 32"),
        ({"buckets": {"smallest": 64}}, "resolution 32 does not lie between them"),
        ({"resolution": (32, 32)}, "resolution is .* several different ones"),
        ({"insert_trigger": True}, "insert_trigger has nothing to insert"),
        ({"loss": {"unmasked_weight": 0.5}}, "loss.unmasked_weight has no effect with masks=off"),
        ({"background": "whyte"}, "'whyte' is no colour"),
        ({"cache": "shard"}, "'shard' is unknown; did you mean shared"),
        ({"folders": ({"path": "a"}, {"path": "a/"})}, "two tables .* have the path 'a'"),
    ],
)
def test_data_settings_that_contradict_or_do_nothing_are_refused(small_training, changes, words):
    with pytest.raises(SdloraError, match=words):
        small_training(**changes)


def test_tables_of_folders_are_read_from_toml_checked_and_written_again(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('images = "in"\noutput = "out"\n[[folders]]\npath = "one"\nrepeats = 3\n[[folders]]\npath = "two"\ntrigger = "zwx"\n')
    found = settings_files.load(TrainConfig, path)
    assert [(folder.path, folder.repeats, folder.trigger) for folder in found.folders] == [("one", 3, ""), ("two", None, "zwx")]
    path.write_text(settings_files.dumps(found))
    assert settings_files.load(TrainConfig, path) == found
    with pytest.raises(SdloraError, match="unknown setting folders.repeat .*did you mean folders.repeats"):
        settings_files.load(TrainConfig, path, ['folders=[{path="a", repeat=2}]'])


def test_the_fingerprint_of_a_run_knows_what_its_folders_say(small_training, components):
    settings = {"steps": 1, "folders": ({"path": ".", "repeats": 2},)}
    training.train(small_training(**settings), progress=False, components=components)
    with pytest.raises(SdloraError, match="the images changed since the run in .* began"):
        training.train(small_training(**settings | {"folders": ({"path": ".", "repeats": 3},)}), progress=False, components=components)
    assert len(fingerprint(sources.gathered(small_training()).examples)) == 64
