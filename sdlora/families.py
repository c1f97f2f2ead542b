"""The model families: one row of facts each."""

from dataclasses import dataclass

EPSILON, V = PREDICTIONS = ("epsilon", "v_prediction")  # what a U-Net may say of a noisy latent


@dataclass(frozen=True)
class Family:
    name: str
    title: str  # for messages
    pipeline: str  # the class that model_index.json names
    linear: bool  # use_linear_projection: proj_in and proj_out of the U-Net are Linear, not 1 × 1 convolutions
    tokenizers: tuple[str, ...]  # folders in diffusers' layout
    text_encoders: tuple[tuple[str, str], ...]  # folder and class of transformers, in the order of the context's columns
    versions: tuple[str, str]  # ss_base_model_version, kohya's word: for ε and for v
    architectures: tuple[str, str]  # modelspec.architecture, Stability's word: for ε and for v

    def version(self, prediction: str = EPSILON) -> str:
        return self.versions[PREDICTIONS.index(prediction)]

    def architecture(self, prediction: str = EPSILON) -> str:
        return self.architectures[PREDICTIONS.index(prediction)]

    @property
    def pooled(self) -> bool:
        """Whether the U-Net is also told a pooled text embedding and sizes: where a second text encoder projects."""
        return len(self.text_encoders) > 1

    @property
    def folders(self) -> tuple[str, ...]:
        """All parts of a base model in diffusers' layout."""
        return (*(name for name, _ in self.text_encoders), *self.tokenizers, "unet", "vae", "scheduler")


ONE = (("text_encoder", "CLIPTextModel"),)
TWO = (*ONE, ("text_encoder_2", "CLIPTextModelWithProjection"))
SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
SD1_WORDS = ("sd_v1", "sd_v1_v"), ("stable-diffusion-v1", "stable-diffusion-v1")
SD2_WORDS = ("sd_v2", "sd_v2_v"), ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v")
XL_WORDS = ("sdxl_base_v1-0", "sdxl_base_v1-0"), ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base")

FAMILIES = {
    "sd1": Family("sd1", "Stable Diffusion 1.x", SD, False, ("tokenizer",), ONE, *SD1_WORDS),
    "sd2": Family("sd2", "Stable Diffusion 2.x", SD, True, ("tokenizer",), ONE, *SD2_WORDS),
    "sdxl": Family("sdxl", "Stable Diffusion XL", XL, True, ("tokenizer", "tokenizer_2"), TWO, *XL_WORDS),
}
