"""Base models on disk: single files with LDM's names, folders in diffusers' layout, VAEs of their own; what they are, and both ways.

opened (folder | single | external) -> Opened: family, prediction, configurations, networks without memory, tensors not yet read
identify, distilled: what a single file is · unet, vae, clip: its names · links: its tensors · shards: which files of a folder
build: weights into networks · configs, tokenizer: what the package knows of each family · hashes: sha256, remembered
hub: the local cache of Hugging Face
"""

from sdlora.checkpoints.opened import Opened

__all__ = ["Opened"]
