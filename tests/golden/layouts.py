"""The three layouts a checkpoint of this family comes in, from tensors by their Hugging Face names."""
import json

import torch
from safetensors.torch import save_file

import reference


def write(directory, config, tensors, shards=1):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {name: tensors[name].contiguous() for name in sorted(tensors)}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for n in range(shards):  # the released files count from 00000, their total one less than there are
        file = f"model-{n:05}-of-{shards - 1:05}.safetensors"
        part = {name: tensors[name] for name in names[n::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(v.numel() * v.element_size() for v in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def dense(tensors, name):
    """The experts of one projection, [E, out, in] in BF16, which holds every MXFP4 value used here."""
    values = reference.dequantise(*(tensors[f"{name}_{part}"].numpy() for part in ("blocks", "scales")))
    stored = torch.from_numpy(values).bfloat16()
    assert torch.equal(stored.double(), torch.from_numpy(values))
    return stored


def dequantised_layout(config, tensors):
    """Hugging Face's BF16 layout: experts [E, in, out], no quantization_config."""
    out = {n: v for n, v in tensors.items() if not n.endswith(("_blocks", "_scales"))}
    for blocks in (n for n in tensors if n.endswith("_blocks")):
        name = blocks.removesuffix("_blocks")
        out[name] = dense(tensors, name).transpose(1, 2)
    return {k: v for k, v in config.items() if k != "quantization_config"}, out


ORIGINAL = {"input_layernorm.weight": "attn.norm.scale", "post_attention_layernorm.weight": "mlp.norm.scale",
            "self_attn.sinks": "attn.sinks", "self_attn.o_proj.weight": "attn.out.weight",
            "self_attn.o_proj.bias": "attn.out.bias", "mlp.router.weight": "mlp.gate.weight",
            "mlp.router.bias": "mlp.gate.bias", "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
            "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
            "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
            "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
            "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
            "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales"}


def original_block(tensors, n):
    """Layer n by openai's names."""
    p = f"model.layers.{n}."
    out = {new: tensors[p + old] for old, new in ORIGINAL.items()}
    for part in ("weight", "bias"):
        out[f"attn.qkv.{part}"] = torch.cat([tensors[f"{p}self_attn.{x}_proj.{part}"] for x in "qkv"])
    return out


def original_layout(config, tensors):
    """openai's `original/` folder."""
    out = {"embedding.weight": tensors["model.embed_tokens.weight"],
           "unembedding.weight": tensors["lm_head.weight"], "norm.scale": tensors["model.norm.weight"]}
    for n in range(config["num_hidden_layers"]):
        out |= {f"block.{n}.{name}": v for name, v in original_block(tensors, n).items()}
    same = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
            "num_attention_heads", "num_key_value_heads", "sliding_window", "initial_context_length", "rope_theta")
    scaling = config["rope_scaling"]
    return dict({k: config[k] for k in same}, num_experts=config["num_local_experts"],
                experts_per_token=config["num_experts_per_tok"], rope_scaling_factor=scaling["factor"],
                rope_ntk_alpha=scaling["beta_slow"], rope_ntk_beta=scaling["beta_fast"]), out
