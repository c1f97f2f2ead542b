"""How a step was made, by the names of kohya's metadata and in a person's words."""

from sdlora.training.config import TrainConfig


def header(config: TrainConfig) -> dict[str, str]:
    """The keys ss_… of kohya's trainer for what concerns data and step; "None" where a thing is off, as there. Of a settled config."""
    loss, noise = config.loss, config.noise
    robust = loss.kind in ("huber", "smooth_l1")
    found = {
        "optimizer": config.optimizer.name,
        "lr_scheduler": config.schedule,
        "lr_warmup_steps": config.warmup,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.clip,
        "gradient_accumulation_steps": config.accumulate,
        "seed": config.seed,
        "min_snr_gamma": config.min_snr or None,
        "debiased_estimation": loss.weighting == "debiased",
        "loss_type": "l2" if loss.kind == "mse" else loss.kind,
        "huber_c": (loss.huber_c or 0.1) if robust else None,
        "huber_schedule": (loss.huber_schedule or "snr") if robust else None,
        "noise_offset": noise.offset or None,
        "adaptive_noise_scale": noise.offset_adaptive or None,
        "multires_noise_iterations": noise.pyramid_levels or None,
        "multires_noise_discount": (noise.pyramid_discount or 0.4) if noise.pyramid_levels else None,
        "ip_noise_gamma": noise.input_perturbation or None,
        "zero_terminal_snr": noise.zero_snr,
        "scale_weight_norms": config.max_norm or None,
        "network_dropout": config.dropout.network or None,
        "clip_skip": config.clip_skip if config.clip_skip > 1 else None,
        "max_token_length": 75 * config.caption_chunks,
        "shuffle_caption": config.shuffle_tags,
        "keep_tokens": config.keep_tokens,
        "caption_dropout_rate": config.caption_dropout,
        "caption_tag_dropout_rate": config.tag_dropout,
        "flip_aug": config.flip,
        "random_crop": config.crop == "random",
        "enable_bucket": config.buckets.on,
        "bucket_no_upscale": not config.buckets.upscale,
        "prior_loss_weight": config.prior.weight,
    }
    return {f"ss_{key}": str(value) for key, value in found.items()}


def schedule(config: TrainConfig) -> str:
    """What follows the warm-up, and what else acts on the trained numbers."""
    own = config.dropout
    more = {
        f"B {config.lora_plus:g} times as fast as A": config.lora_plus != 1,
        f"average with decay {config.ema.decay:g}": config.ema.on,
        f"dropout {own.network:g} of numbers, {own.rank:g} of ranks, {own.module:g} of layers": own.on,
        f"norms up to {config.max_norm:g}": config.max_norm,
    }
    return "; ".join([_fall(config), *(text for text, on in more.items() if on)])


def _fall(config: TrainConfig) -> str:
    floor = f"{config.schedule_floor:g} of it" if config.schedule_floor else "0"
    return {
        "cosine": f"then a cosine to {floor}",
        "cosine_restarts": f"then {config.schedule_cycles or 3} cosines to {floor}",
        "linear": f"then linearly to {floor}",
        "polynomial": f"then to {floor} with power {config.schedule_power or 2:g}",
        "wsd": f"then constant, and over the last {100 * (config.schedule_decay or 0.2):g} % to {floor}",
        "rex": f"then to {floor} as REX",
        "inverse_sqrt": "then as 1/√step",
        "constant": "then constant",
    }[config.schedule]


def loss(config: TrainConfig) -> str:
    weighting = config.loss.weighting or "min_snr"
    names = {"debiased": "debiased", "p2": "P2", "snr_range": "clamped SNR", "none": "plain"}
    weighed = (f"Min-SNR {config.min_snr:g}" if config.min_snr else "plain") if weighting == "min_snr" else names[weighting]
    kind = "" if config.loss.kind == "mse" else f" {config.loss.kind}"
    return ", ".join([weighed + kind, _timesteps(config), *_noise(config)])


def _timesteps(config: TrainConfig) -> str:
    own = config.timesteps
    found = ("stratified " if config.stratified else "") + ("" if own.distribution == "uniform" else own.distribution + " ") + "timesteps"
    found += f" from {own.min} up to {own.max or 1000}" if own.min or own.max else ""
    return found + (f", shifted by {own.shift:g}" if own.shift != 1 else "")


def _noise(config: TrainConfig) -> list[str]:
    own = config.noise
    found = {
        f"noise offset {own.offset:g}": own.offset,
        f"adaptive noise offset {own.offset_adaptive:g}": own.offset_adaptive,
        f"noise at {own.pyramid_levels} resolutions": own.pyramid_levels,
        f"input perturbation {own.input_perturbation:g}": own.input_perturbation,
        "zero-terminal SNR": own.zero_snr,
    }
    return [text for text, on in found.items() if on]
