"""What a picture says of itself."""

SETTINGS = {
    "prompt": "a cat face, flat emoji",
    "negative": "blue: very",
    "seed": 2**40 + 1,
    "steps": 20,
    "sampler": "Euler",
    "schedule": "uniform",
    "guidance": 5.0,
    "width": 64,
    "height": 96,
    "base": {"name": "emoji", "hash": "0123456789abcdef"},
    "adapters": [{"file": "style one.safetensors", "strength": 0.8, "sha256": "ff" * 32, "hash": "cafe00cafe00"}],
    "version": "sdlora 0.1.0",
}
