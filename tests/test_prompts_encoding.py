"""From texts to embeddings: chunks of 75, weights in fp64 by hand, clip skip, two encoders."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlora import conditioning
from sdlora.errors import SdloraError
from sdlora.prompts import Marks, Memory, chunked, encode
from sdlora.prompts.encode import chunks_of, marks_of

START, END, COMMA = 98, 99, 7
MARKS = Marks(START, END, COMMA)
law = settings(max_examples=150)


def bodies(*spans, marks: Marks = MARKS, backtrack: int = 20) -> list[list[int]]:
    """The tokens between start and the filling, after a check of the frame."""
    chunks = chunked([None if span is None else (span, 1.0) for span in spans], marks, backtrack)
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) == marks.length + 2
        assert chunk.ids[0] == marks.start and chunk.ids[-1] == marks.end
    return [[token for token in chunk.ids[1:] if token != marks.end] for chunk in chunks]


def test_nothing_is_one_empty_chunk():
    assert bodies() == bodies([]) == [[]]
    assert chunked([], MARKS)[0].ids == (START, *[END] * 76)


def test_75_tokens_are_one_chunk_and_76_are_two():
    assert bodies([1] * 75) == [[1] * 75]
    assert bodies([1] * 76) == [[1] * 75, [1]]
    assert bodies([1] * 151) == [[1] * 75, [1] * 75, [1]]


def test_what_follows_a_late_comma_goes_to_the_next_chunk():
    assert bodies([1] * 60 + [COMMA] + [2] * 15) == [[1] * 60 + [COMMA], [2] * 15]
    assert bodies([1] * 55 + [COMMA] + [2] * 25) == [[1] * 55 + [COMMA], [2] * 25]  # 20 tokens back, with the comma
    assert bodies([1] * 54 + [COMMA] + [2] * 25) == [[1] * 54 + [COMMA] + [2] * 20, [2] * 5]  # 21
    assert bodies([1] * 60 + [COMMA] + [2] * 14) == [[1] * 60 + [COMMA] + [2] * 14]  # fits


def test_a_comma_that_is_itself_too_much_begins_the_next_chunk():
    assert bodies([1] * 75 + [COMMA] + [2]) == [[1] * 75, [COMMA, 2]]
    assert bodies([1] * 70 + [COMMA] + [2] * 4 + [COMMA, 3]) == [[1] * 70 + [COMMA] + [2] * 4, [COMMA, 3]]


def test_break_fills_the_chunk_and_a_comma_before_it_is_forgotten():
    assert bodies([1, 2], None, [3]) == [[1, 2], [3]]
    assert bodies([1], None) == [[1]] and bodies(None) == [[]] and bodies(None, None, [1]) == [[], [], [1]]
    assert bodies([1] * 60 + [COMMA], None, [2] * 76) == [[1] * 60 + [COMMA], [2] * 75, [2]]


def test_weights_travel_with_their_tokens():
    chunks = chunked([([1] * 60 + [COMMA], 1.1), ([2] * 15, 0.5)], MARKS)
    assert chunks[0].weights == (1.0, *[1.1] * 61, *[1.0] * 15)
    assert chunks[1].weights == (1.0, *[0.5] * 15, *[1.0] * 61)


@law
@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from([1, 2, COMMA]), max_size=12)), max_size=6), st.integers(0, 5))
def test_no_token_is_lost_or_moved(spans: list, backtrack: int):
    chunks = bodies(*spans, marks=Marks(START, END, COMMA, length=8), backtrack=backtrack)
    assert [token for chunk in chunks for token in chunk] == [token for span in spans if span for token in span]


# --- with the tokenizer and the encoder of the tiny base


def encoded(components, *texts: str, **settings) -> torch.Tensor:
    return encode(components.tokenizers[0], components.text_encoders[0], texts, **settings).context


def in_fp64(components, ids: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], skip: int = 1, norm: bool = True, rescale=True):
    """z of rows of 77 tokens: the encoder itself in double precision, its layers by hooks, weights and mean by hand."""
    from copy import deepcopy

    twin, layers = deepcopy(components.text_encoders[0]).double(), []
    for layer in twin.encoder.layers:
        layer.register_forward_hook(lambda m, i, o: layers.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        twin(torch.tensor(ids))
        z = layers[-skip]
        z = twin.final_layer_norm(z) if norm else z
    w = torch.tensor(weights, dtype=torch.float64)[..., None]
    return z * w * (z.mean() / (z * w).mean()) if rescale else z * w


@pytest.mark.parametrize("text", ["a cat face, flat emoji", "", "a dog , 3d emoji", "the sun"])
def test_a_plain_text_is_what_the_tokenizer_and_encoder_make_of_it_bit_for_bit(components, text: str):
    assert torch.equal(encoded(components, text), conditioning.encode_text(components, [text]).context)


@pytest.mark.parametrize(("emphasis", "rescale"), [("Original", True), ("No norm", False)])
def test_emphasis_multiplies_and_restores_the_mean_of_the_call(components, emphasis: str, rescale: bool):
    text, ids = "a (cat:1.5) [face]", components.tokenizers[0]("a cat face").input_ids
    assert len(ids) == 5, "the tiny vocabulary has these words as one token each"
    weights = [1, 1, 1.5, 1 / 1.1, *[1] * 73]
    expected = in_fp64(components, [ids + [ids[-1]] * 72], [weights], rescale=rescale)
    assert (encoded(components, text, emphasis=emphasis) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (encoded(components, "a cat face") - expected).abs().max() > 1e-2 * expected.abs().max()


def test_ignored_emphasis_is_none_at_all_and_without_it_brackets_are_text(components):
    assert torch.equal(encoded(components, "a (cat:1.5) [face]", emphasis="Ignore"), encoded(components, "a cat face"))
    assert torch.equal(encoded(components, "a (cat)", emphasis="None"), conditioning.encode_text(components, ["a (cat)"]).context)


def test_the_mean_is_of_all_texts_of_a_schedule_as_in_a1111(components):
    both, ids = encoded(components, "a (cat:1.5)", "a dog"), [components.tokenizers[0](text).input_ids for text in ("a cat", "a dog")]
    assert [len(row) for row in ids] == [4, 4]
    rows = [row + [row[-1]] * 73 for row in ids]
    expected = in_fp64(components, rows, [[1, 1, 1.5, *[1] * 74], [1] * 77])
    assert (both - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not torch.equal(both[1:], encoded(components, "a dog"))


@pytest.mark.parametrize("norm", [True, False])
def test_clip_skip_reads_an_earlier_layer_through_the_final_norm(components, norm: bool):
    ids = components.tokenizers[0]("a cat face").input_ids
    expected = in_fp64(components, [ids + [ids[-1]] * 72], [[1.0] * 77], skip=2, norm=norm)
    found = encoded(components, "a cat face", clip_skip=2, final_norm=norm)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.equal(found, encoded(components, "a cat face"))


def test_long_texts_are_chunks_side_by_side_and_shorter_ones_get_empty_chunks(components):
    long = encoded(components, "a cat BREAK a dog")
    assert torch.equal(long, torch.cat([encoded(components, "a cat"), encoded(components, "a dog")], dim=1))
    both = encoded(components, "a cat BREAK a dog", "the sun")
    assert both.shape[:2] == (2, 154)
    assert torch.equal(both[1:], torch.cat([encoded(components, "the sun"), encoded(components, "")], dim=1))


def test_the_comma_of_the_tokenizer_is_the_one_looked_for(components):
    marks, ids = marks_of(components.tokenizers[0]), components.tokenizers[0](",", add_special_tokens=False).input_ids
    assert [marks.comma] == ids and marks.length == 75
    text = "cat " * 60 + ", " + "dog " * 15
    assert [chunk.ids.count(ids[0]) for chunk in chunks_of(components.tokenizers[0], text)] == [1, 0]
    assert chunks_of(components.tokenizers[0], text)[0].ids[62:] == (marks.end,) * 15


def test_each_chunk_is_encoded_once(components):
    calls, memory = [], Memory()
    with components.text_encoders[0].register_forward_hook(lambda m, inputs, output: calls.append(1)):
        encode(components.tokenizers[0], components.text_encoders[0], ["a cat BREAK a dog", "a dog", "a (cat:1.3)"], memory=memory)
        encode(components.tokenizers[0], components.text_encoders[0], ["a dog", ""], memory=memory)
    assert len(calls) == 3  # a cat, a dog, nothing


@pytest.mark.parametrize(
    ("settings", "message"), [({"emphasis": "Norm"}, "No norm"), ({"clip_skip": 0}, "layers"), ({"clip_skip": 9}, "layers")]
)
def test_impossible_settings_are_refused(components, settings: dict, message: str):
    with pytest.raises(SdloraError, match=message):
        encoded(components, "a cat", **settings)


# --- SDXL's second encoder: a projection, and a padding token of its own


@pytest.fixture(scope="module")
def second(components):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words = components.tokenizers[0]
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": 0}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=77, **shape, **ends)).eval()


class Padded:
    """A tokenizer whose padding token is 0, as SD 2.x and SDXL's second have it."""

    def __init__(self, words):
        self.words, self.pad_token_id = words, 0

    def __getattr__(self, name: str):
        return getattr(self.words, name)

    def __call__(self, *arguments, **settings):
        return self.words(*arguments, **settings)


def test_the_pooled_vector_is_the_first_chunks_and_not_touched_by_emphasis_or_skip(components, second):
    tokenizer = Padded(components.tokenizers[0])
    sdxl = {"clip_skip": 2, "final_norm": False}
    found = encode(tokenizer, second, ["a (cat:1.5) BREAK a dog"], **sdxl)
    ids = tokenizer("a cat").input_ids
    with torch.no_grad():
        expected = second(torch.tensor([ids + [0] * (77 - len(ids))]), output_hidden_states=True)
    assert torch.equal(found.pooled, expected.text_embeds)
    assert found.context.shape == (1, 154, 32)
    plain = encode(tokenizer, second, ["a cat"], **sdxl)
    assert torch.equal(plain.context, expected.hidden_states[-2])


def test_rows_are_the_texts_alone(components, second):
    both = encode(Padded(components.tokenizers[0]), second, ["a cat", "a dog"])
    one = encode(Padded(components.tokenizers[0]), second, ["a dog"])
    assert torch.equal(both.row(1).context, one.context) and torch.equal(both.row(1).pooled, one.pooled)
