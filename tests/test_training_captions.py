"""What text encoders make of captions in a training: in chunks as prompts, cached or not, alone or beside others."""

import pytest
import torch
from folders import LONG

from sdlora import conditioning
from sdlora.data import Cache
from sdlora.data.encode import embedding
from sdlora.errors import SdloraError
from sdlora.prompts import encode as generation_encode
from sdlora.training import text


def test_long_captions_are_read_in_chunks_as_prompts_are(components, loaded):
    for base in (components, loaded("sdxl")):
        sdxl = len(base.text_encoders) > 1
        for caption in ("a cat", LONG):
            skip, norm = (2, False) if sdxl else (1, True)
            parts = [
                generation_encode(tokenizer, encoder, [caption], skip, "None", norm)
                for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True)
            ]
            ours = embedding(caption, base, Cache())
            torch.testing.assert_close(ours.context, torch.cat([part.context for part in parts], -1), rtol=1e-4, atol=1e-5)
            if sdxl:
                torch.testing.assert_close(ours.pooled, parts[-1].pooled, rtol=1e-4, atol=1e-5)
        assert embedding(LONG, base, Cache()).context.shape[1] == 154 and embedding(LONG, base, Cache(), chunks=1).context.shape[1] == 77
    short = conditioning.encode_text(components, ["a cat"]).context
    torch.testing.assert_close(embedding("a cat", components, Cache()).context, short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [None, "sdxl"])
def test_a_caption_is_told_the_same_whatever_stands_beside_it(components, loaded, kind):
    base = loaded(kind) if kind else components
    x, t = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    both = text.cached(["a dog", LONG], base, Cache())(["a dog", LONG])
    assert both.mask.sum(1).tolist() == [77, 154]
    with torch.no_grad():
        together = conditioning.predict(base.unet, x.expand(2, -1, -1, -1), t.expand(2), both, ids.expand(2, -1))
        alone = [conditioning.predict(base.unet, x, t, embedding(caption, base, Cache()), ids) for caption in ("a dog", LONG)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_text_encoders_that_learn_read_long_captions_as_the_cached_ones_do(loaded):
    base, captions = loaded("sdxl"), ["a dog", LONG, None, "a dog"]
    known = [caption for caption in captions if caption]
    anew, kept = text.encoded(known, base)(captions), text.cached(known, base, Cache())(captions)
    torch.testing.assert_close(anew.context * anew.mask[..., None], kept.context, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(anew.pooled, kept.pooled, rtol=1e-4, atol=1e-5)


def test_clip_skip_is_generations(components, loaded):
    (tokenizer,), (encoder,) = components.tokenizers, components.text_encoders
    expected = generation_encode(tokenizer, encoder, ["a cat"], 2, "None").context
    torch.testing.assert_close(embedding("a cat", components, Cache(), clip_skip=2).context, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(embedding(None, components, Cache(), 2).context, embedding(None, components, Cache()).context)
    with pytest.raises(SdloraError, match="clip_skip is 9; this text encoder has"):
        embedding("a cat", components, Cache(), clip_skip=9)
    with pytest.raises(SdloraError, match="clip_skip is 3; Stable Diffusion XL"):
        embedding("a cat", loaded("sdxl"), Cache(), clip_skip=3)
