"""Laws of writing: a file is there whole or not at all; and of the helper that words an unknown name."""

import os
import resource
from pathlib import Path

import pytest
from PIL import Image

from sdlora.atomic import replacing, writable_folder
from sdlora.errors import SdloraError, nearest
from sdlora.images import save_png


def test_a_file_appears_when_the_block_ends_and_folders_are_made(tmp_path):
    target = tmp_path / "new" / "folder" / "a.json"
    with replacing(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent and temporary.suffix == ".json" and not target.exists()
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]


def test_an_error_in_the_block_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ValueError), replacing(target) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdloraError, match="cannot write into .*file/x: "):
        writable_folder(tmp_path / "file" / "x")
    with pytest.raises(SdloraError, match="it is a folder"), replacing(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SdloraError, match="cannot write into"), replacing(tmp_path / "a"):
        pass


def test_nearest_names_the_word_that_was_meant_or_all_that_are_valid():
    assert nearest("rnak", ["rank", "alpha"]) == "; did you mean rank?"
    assert nearest("zzz", ["rank", "alpha"]) == "; valid: alpha, rank"


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing_half_written(tmp_path: Path):
    """The kernel refuses to let a file grow beyond 4 KiB, as it does on a full disk."""
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    save_png(Image.new("RGB", (4, 4)), tmp_path / "earlier.png", {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SdloraError, match="cannot write .*later.png: File too large") as error:
            save_png(noise, tmp_path / "later.png", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["earlier.png"]


def test_an_error_that_is_not_the_disks_is_passed_on(tmp_path: Path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        (tmp_path / "nowhere").read_bytes()
