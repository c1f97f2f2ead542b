"""The base's own small byte-level BPE vocabulary, in CLIP's format: vocab.json and merges.txt."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

SIZE = 2_200
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of GPT-2's and CLIP's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def train(captions: Path, folder: Path) -> None:
    """Learn the merges from the captions; write vocab.json, merges.txt and tokenizer_config.json."""
    words = [note[0] for note in json.loads(captions.read_text())]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in json.loads(bpe.to_str())["model"]["merges"]]
    symbols = byte_symbols()
    entries = [*symbols, *(s + "</w>" for s in symbols)]
    entries += [e for e in dict.fromkeys("".join(m) for m in merges) if e not in set(entries)]
    vocabulary = {entry: i for i, entry in enumerate([*entries, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    settings = {"model_max_length": 77, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"}, indent=1))


def load(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(n, 77) token numbers, padded with the end token."""
    unique = list(dict.fromkeys(captions))
    ids = tokenizer(unique, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    row = {caption: i for i, caption in enumerate(unique)}
    return ids[torch.tensor([row[c] for c in captions])]
