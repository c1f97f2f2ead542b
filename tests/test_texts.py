"""Text files are read whatever program wrote them, and what is no text is said with its place and what it should be."""

import pytest

from sdlora import texts
from sdlora.errors import SdloraError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_a_text_comes_back_as_it_was_written(tmp_path, mark):
    path = tmp_path / "a.txt"
    texts.write(path, "猫\nκαι\n")
    path.write_bytes(mark + path.read_bytes())
    assert texts.read(path, "a text") == "猫\nκαι\n" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("caf\u00e9".encode("latin-1"), r"a\.txt is not UTF-8 text \(byte 3\); save it as UTF-8"),
        (None, r"cannot read .*a\.txt: No such file or directory; it should be a list of prompts"),
    ],
    ids=["latin-1", "gone"],
)
def test_what_is_no_text_is_one_line_that_says_what_to_do(tmp_path, data, message):
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(SdloraError, match=message):
        texts.read(tmp_path / "a.txt", "a list of prompts")
