"""The two official implementations on a checkpoint of ours, in float32 on the CPU.

Needs transformers, and openai's package gpt_oss on the path. Neither knows layers that differ, so
each layer runs as a model of its own with its layer's configuration.
"""
import copy

import torch

import reference
from layouts import dense, original_block


def transformers_layers(config, tensors, ids, positions, frequencies=None):
    """Hugging Face's model one layer at a time, each with its own configuration, in float32."""
    from transformers import GptOssConfig, GptOssModel
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

    x = tensors["model.embed_tokens.weight"].float()[ids][None]
    for n, window in enumerate(reference.windows(config)):
        p = f"model.layers.{n}."
        drop = ("block_configs", "quantization_config", "layer_types", "sliding_window", "num_hidden_layers")
        layer_config = {k: v for k, v in copy.deepcopy(config).items() if k not in drop}
        if "block_configs" in config:
            layer_config["num_local_experts"] = config["block_configs"][n]["num_local_experts"]
        layer = GptOssModel(GptOssConfig(
            num_hidden_layers=1, layer_types=["sliding_attention" if window else "full_attention"],
            sliding_window=window or 1, attn_implementation="eager", **layer_config)).eval()
        layer.norm = torch.nn.Identity()
        state = {k.removeprefix(p): v.float() for k, v in tensors.items()
                 if k.startswith(p) and not k.endswith(("_blocks", "_scales", "_scale"))}
        for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
            state[name] = dense(tensors, p + name).transpose(1, 2).float()
        layer.layers[0].load_state_dict(state)
        if frequencies is not None:
            layer.rotary_emb.inv_freq = frequencies
        x = layer(inputs_embeds=x, position_ids=positions[None], use_cache=False).last_hidden_state
    norm = GptOssRMSNorm(config["hidden_size"], config["rms_norm_eps"])
    norm.weight.data = tensors["model.norm.weight"].float()
    return norm(x[0]) @ tensors["lm_head.weight"].float().T


def transformers_loads(directory, ids):
    """Hugging Face's own loader and whole model, in float32."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()(ids[None], use_cache=False).logits[0]


def openai_layers(config, tensors, ids, positions, frequencies=None):
    """openai's blocks, each with its layer's experts and window, in float32."""
    from gpt_oss.torch.model import ModelConfig, RMSNorm, TransformerBlock

    scaling = config.get("rope_scaling") or config["rope_parameters"]
    x = tensors["model.embed_tokens.weight"].float()[ids]
    for n, window in enumerate(reference.windows(config)):
        experts = config.get("num_local_experts") or config["block_configs"][n]["num_local_experts"]
        same = ("vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim", "num_attention_heads",
                "num_key_value_heads", "initial_context_length")
        block = TransformerBlock(ModelConfig(
            num_experts=experts, experts_per_token=config["num_experts_per_tok"],
            rope_theta=scaling.get("rope_theta", config.get("rope_theta")), rope_scaling_factor=scaling["factor"],
            rope_ntk_alpha=scaling["beta_slow"], rope_ntk_beta=scaling["beta_fast"],
            **{k: config[k] for k in same}), n, torch.device("cpu")).float()
        block.attn.sliding_window = window or 0
        state = original_block(tensors, n)
        for mlp, name in (("mlp.mlp1_weight", "gate_up_proj"), ("mlp.mlp2_weight", "down_proj")):
            state[mlp] = dense(tensors, f"model.layers.{n}.mlp.experts.{name}")
            del state[mlp + ".blocks"], state[mlp + ".scales"]
        block.load_state_dict({k: v.float() for k, v in state.items()})
        concentration, own = block.attn.rope._compute_concentration_and_inv_freq()
        used = own if frequencies is None else frequencies
        angle = positions.float()[:, None] * used
        block.attn.rope._compute_cos_sin = lambda _: (angle.cos() * concentration, angle.sin() * concentration)
        x = block(x)
    norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
    norm.scale.data = tensors["model.norm.weight"].float()
    return norm(x) @ tensors["lm_head.weight"].float().T


def openai_loads(directory, ids):
    """openai's own loader and whole model, in float32."""
    from gpt_oss.torch.model import Transformer
    return Transformer.from_checkpoint(str(directory), "cpu").float()(ids)


def transformers_rope(parameters, positions):
    """Frequencies, and cosine and sine at positions, by Hugging Face's code from rope_parameters."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding
    module = GptOssRotaryEmbedding(GptOssConfig(rope_parameters=dict(parameters)))
    cos, sin = module(torch.zeros(1), torch.from_numpy(positions)[None])
    return module.inv_freq, cos[0].numpy(), sin[0].numpy()
