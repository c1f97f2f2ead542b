"""Every kind of file that is neither a base nor an adapter of ours is called by its name, by keys that such files have."""

import pytest

from sdlora import recognise

FILES = {  # a key of a file -> a word of what is said of it, one row or more for each pattern
    "model.diffusion_model.input_blocks.1.1.proj_in.weight.absmax": "bitsandbytes",
    "model.diffusion_model.input_blocks.1.1.proj_in.weight.quant_map": "bitsandbytes",
    "model.diffusion_model.input_blocks.1.1.proj_in.weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    "scaled_fp8": "scaled fp8",
    "model.diffusion_model.input_blocks.1.1.proj_in.scale_weight": "scaled fp8",
    "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": "ControlNet-LLLite",
    "lora_controlnet": "Control-LoRA",
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": "adapter",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": "adapter",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": "adapter",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": "adapter",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": "adapter",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": "adapter",
    "lycoris_down_blocks_0_attentions_0_proj_in.hada_w1_a": "adapter",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "ControlNet",
    "image_proj.proj.weight": "IP-Adapter",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "adapter.body.0.resnets.0.block1.weight": "T2I-Adapter",
    "body.0.block1.weight": "T2I-Adapter",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": "AnimateDiff",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn": "GLIGEN",
    "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight": "Stable Video Diffusion",
    "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight": "Stable Video Diffusion",
    "model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.0.weight": "text-to-video",
    "cc_projection.weight": "Zero123",
    "noise_augmentor.data_mean": "Stable unCLIP",
    "embedder.model.visual.class_embedding": "Stable unCLIP",
    "model.diffusion_model.time_embed.cond_proj.weight": "latent consistency",
    "time_embedding.cond_proj.weight": "latent consistency",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    "double_stream_modulation_img.lin.weight": "Flux 2",
    "double_stream_blocks.0.block.attn1.to_q.weight": "HiDream",
    "distilled_guidance_layer.in_proj.weight": "Chroma",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight": "HunyuanVideo",
    "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "transformer.single_transformer_blocks.0.proj_mlp.weight": "Flux",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "clip_txt_mapper.weight": "Stable Cascade",
    "cap_embedder.0.weight": "Lumina",
    "noise_refiner.0.attention.qkv.weight": "Z-Image",
    "adaln_single.linear.weight": "PixArt",
    "model.diffusion_model.patchify_proj.weight": "LTX-Video",
    "mlp_t5.0.weight": "HunyuanDiT",
    "t5_yproj.weight": "Mochi",
    "transformer_blocks.0.img_mod.1.weight": "Qwen-Image",
    "model.diffusion_model.head.modulation": "Wan",
    "edm_mean": "Playground 2.5",
    "edm_vpred.sigma_max": "CosXL",
    "string_to_param": "textual inversion",
    "emb_params": "textual inversion",
    "clip_g": "textual inversion",
    "<ink>": "textual inversion",
    "768": "hypernetwork",
    "model.1.sub.0.RDB1.conv1.0.weight": "upscaler of pictures",
    "conv_first.weight": "upscaler of pictures",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "T5",
    "vision_model.encoder.layers.0.mlp.fc1.weight": "CLIP vision",
}


@pytest.mark.parametrize("key", FILES)
def test_a_key_of_such_a_file_is_enough_among_others(key):
    said = recognise.what(["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.quant_conv.weight", key])
    assert said is not None and FILES[key] in said


def test_every_row_of_the_table_has_a_file():
    assert {said for _, said in recognise.KNOWN} == {recognise.what([key]) for key in FILES}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_bases_themselves_are_none_of_these(family):
    from checkpoint_models import true_tensors
    from skeletons import true_size

    from sdlora.layers import named_layers

    assert recognise.what(true_tensors(family)) is None
    assert recognise.what(f"{name}.weight" for name in named_layers(true_size(family))) is None
    assert recognise.part(true_tensors(family)) == "a base model (--base)"
