"""CLIP's tokenizer from the vocabulary in the package: the merges that OpenAI published, and what follows from them."""

import gzip
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "assets" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49408  # 256 bytes, the same at a word's end, the merges, and START and END
LENGTH = 77  # tokens of a prompt, START and END among them


@lru_cache(maxsize=1)
def merges() -> tuple[str, ...]:
    """The merges, "left right", most frequent first. The file has a line of title and more merges than CLIP took."""
    lines = gzip.decompress(FILE.read_bytes()).decode("utf-8").split("\n")
    return tuple(lines[1 : SIZE - 2 * 256 - 2 + 1])


def vocabulary() -> dict[str, int]:
    """Token -> number: the 256 bytes as printable characters, the same at a word's end, each merge, START and END."""
    bytes_ = _printable()
    words = [*bytes_, *(byte + "</w>" for byte in bytes_), *("".join(merge.split()) for merge in merges()), START, END]
    return {word: number for number, word in enumerate(words)}


def _printable() -> list[str]:
    """A printable character for each byte, in the vocabulary's order: itself where it is printable, else one from 256 on (GPT-2's)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(own))
    return [chr(byte) for byte in own] + [chr(256 + i) for i in range(others)]


def write(folder: Path, pad: str = END) -> None:
    """The tokenizer's files as transformers and diffusers read them; prompts are filled up to 77 tokens with `pad`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges()]) + "\n", encoding="utf-8")
    words = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **words}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(words, indent=1), encoding="utf-8")


def tokenizer(pad: str = END) -> Any:
    """A transformers.CLIPTokenizer with CLIP's vocabulary, which fills prompts up with `pad`."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:  # written and read, because its constructor differs from version to version
        write(Path(folder), pad)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
