"""The model families: one row of facts each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    name: str
    pipeline: str  # the class that model_index.json names
    version: str  # ss_base_model_version, kohya's word
    architecture: str  # modelspec.architecture, Stability's word


FAMILIES = {
    "sd1": Family("sd1", "StableDiffusionPipeline", "sd_v1", "stable-diffusion-v1"),
}
