"""The vocabulary in the package is CLIP's."""

from sdlora.checkpoints import tokenizer


def test_the_tokenizer_of_the_package_is_clips():
    import hashlib

    assert hashlib.sha256(tokenizer.FILE.read_bytes()).hexdigest().startswith("924691ac288e5440")
    words = tokenizer.vocabulary()
    assert len(words) == 49408 and (words[tokenizer.START], words[tokenizer.END], words["!"]) == (49406, 49407, 0)
    clip = tokenizer.tokenizer()
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip("A  Photo of\na CAT").input_ids == clip("a photo of a cat").input_ids
    padded = clip("a", padding="max_length").input_ids
    assert len(padded) == 77 and set(padded[2:]) == {49407}
    assert set(tokenizer.tokenizer("!")("a", padding="max_length").input_ids[3:]) == {0}
