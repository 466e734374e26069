"""Hugging Face architectures at a tiny size: which are tried, and the entries of their configs that make them small."""

from __future__ import annotations

from typing import Any

__all__ = ["ARCHITECTURES", "tiny_settings"]

#: Entries that many configs share, at a size that a test can run. Only those that a config has are set.
_COMMON: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "embedding_size": 32,
    "embed_dim": 32, "d_embed": 32, "hidden_dim": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "n_inner": 64,
    "intermediate_size": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_ff": 64, "d_inner": 64,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "ffn_hidden_size": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 64, "n_positions": 32, "max_position_embeddings": 32, "max_target_positions": 32, "n_ctx": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2, "cls_token_id": 1,
    "image_size": 32, "patch_size": 8, "num_labels": 8, "layerdrop": 0.0, "state_size": 8, "num_mel_bins": 16,
}  # fmt: skip

#: The architectures, by kind, with what they need beside the common entries (None: that entry as the config has it).
ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "decoder": {
        "gpt2": {},
        "llama": {},
        "mistral": {},
        "gemma": {},
        "gemma2": {},
        "qwen2": {},
        "qwen3": {},
        "phi": {},
        "phi3": {},
        "gpt_neox": {},
        "gpt_neo": {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "attention_layers": ["global", "local"],
        },
        "gptj": {"rotary_dim": 4},
        "opt": {"word_embed_proj_dim": 32},
        "bloom": {},
        "falcon": {},
        "mpt": {},
        "stablelm": {},
        "starcoder2": {},
        "olmo": {},
        "olmo2": {},
        "cohere": {},
        "codegen": {"rotary_dim": 4},
        "gpt_bigcode": {},
        "granite": {},
        "glm": {},
        "smollm3": {},
        "nemotron": {},
        "xglm": {},
        "biogpt": {},
        "persimmon": {},
        "exaone4": {},
        "helium": {},
    },
    "encoder": {
        "bert": {},
        "roberta": {},
        "distilbert": {"dim": 32},
        "albert": {},
        "electra": {},
        "deberta-v2": {},
        "mpnet": {},
        "convbert": {"head_ratio": 2},
        "modernbert": {},
        "xlm-roberta": {},
        "layoutlm": {},
        "fnet": {},
        "nystromformer": {},
        "squeezebert": {},
        "megatron-bert": {},
        "esm": {"mask_token_id": 3},
        "funnel": {},
    },
    "encoder-decoder": {
        "t5": {},
        "bart": {},
        "mbart": {},
        "pegasus": {},
        "marian": {},
        "mt5": {},
        "blenderbot": {},
        "m2m_100": {},
        "prophetnet": {},
        "led": {"attention_window": [8, 8]},
        "longt5": {},
        "switch_transformers": {},
        "umt5": {},
    },
    "vision": {
        "vit": {},
        "deit": {},
        "beit": {},
        "swin": {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "patch_size": 4, "window_size": 4},
        "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "patch_size": 4},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "segformer": {
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
            "patch_size": None,
        },
        "mobilevit": {},
        "poolformer": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "patch_size": None},
        "dinov2": {},
        "pvt": {
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "patch_size": None,
        },
        "efficientnet": {"hidden_dim": None},
        "mobilenet_v2": {},
        "vit_mae": {},
        "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        "videomae": {"num_frames": 4},
    },
    "audio": {
        "wav2vec2": {"num_mel_bins": None, "seq": 800},
        "hubert": {"num_mel_bins": None, "seq": 800},
        "wavlm": {"num_mel_bins": None, "seq": 800},
        "whisper": {"max_source_positions": 16},
        "audio-spectrogram-transformer": {"max_length": 32, "patch_size": 8},
        "speech_to_text": {"conv_channels": 32},
        "unispeech": {"num_mel_bins": None, "seq": 800},
        "wav2vec2-bert": {"feature_projection_input_dim": 16},
    },
    "state space": {
        "mamba": {},
        "mamba2": {"num_heads": 8, "n_groups": 2, "chunk_size": 8},
        "falcon_mamba": {},
        "rwkv": {},
        "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "attn_layer_indices": [1]},
        "jamba": {},
        "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3},
        "zamba": {"num_hidden_layers": 3, "layer_types": ["mamba", "mamba", "hybrid"]},
    },
    "mixture of experts": {
        "mixtral": {},
        "qwen2_moe": {},
        "qwen3_moe": {},
        "olmoe": {},
        "deepseek_v2": {
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "num_key_value_heads": 4,
            "v_head_dim": 8,
            "topk_group": 1,
            "n_group": 1,
        },
        "deepseek_v3": {
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "num_key_value_heads": 4,
            "v_head_dim": 8,
            "topk_group": 1,
            "n_group": 1,
        },
        "phimoe": {},
        "granitemoe": {},
        "gpt_oss": {},
        "dbrx": {},
    },
    "multimodal": {"clip": {}, "siglip": {}, "blip": {}, "vilt": {}, "llava": {}},
}


def tiny_settings(model_type: str, special: dict[str, Any], config: Any) -> dict[str, Any]:
    """What to set in `config` (the default of `model_type`): the common entries that it has, at its top and in the configs inside,
    and its special ones."""
    out: dict[str, Any] = {}
    for prefix, holder in _holders(config):
        names = set(holder.to_dict()) | set(getattr(holder, "attribute_map", {})) | ({"num_labels"} if not prefix else set())
        for name, value in _COMMON.items():
            target = getattr(holder, "attribute_map", {}).get(name, name)
            if (
                name in names
                and not isinstance(getattr(holder, name, None), list | tuple | dict)
                and f"{prefix}{target}" not in out
            ):
                out[f"{prefix}{target}"] = value
    out |= special
    return {name: value for name, value in out.items() if value is not None}


def _holders(config: Any) -> list[tuple[str, Any]]:
    inside = [
        (f"{name}.", getattr(config, name)) for name in config.to_dict() if hasattr(getattr(config, name, None), "to_diff_dict")
    ]
    return [("", config), *inside]
