"""Makes the golden checkpoints and logits beside this file.

    python make.py --openai DIR [--out DIR] [--only CASE]

Every directory here is a small random checkpoint in a released layout, with golden*.safetensors:

    input_ids     I64 [T]
    positions     I64 [T], 0, 1, .. except in golden-far
    logits        F32 [T, V]
    hidden.N      F32 [T, H], the embedding (N = 0) and the output of every layer; some cases only
    margins       F32 [N, T], by how much the last chosen expert beat the first rejected one, for
                  each of the N layers that have a choice

golden.safetensors is the model with an exact cache; golden-bf16 and golden-fp8 round K (after RoPE)
and V as a cache of that type does; golden-far starts at position 70,000 and also holds
logits_f32_angles, where position times frequency is rounded to float32 as the official
implementations do. yarn.safetensors holds rotary tables by factor and truncate.

The logits are those of reference.py in float64, rounded to float32. This script refuses to write
them unless three implementations agree to 1e-5 of every token's logits: reference.py, Hugging Face
transformers and openai's torch reference, both in float32. Two limits of these references:
- Neither knows layers that differ. A heterogeneous model runs as one-layer models of theirs, each
  with its layer's configuration, so that windows, masks and rotary tables are still their own.
- openai's has no `truncate: true`; there it is given transformers' frequencies.
The caches that round are reference.py's alone: the same code without rounding is what agrees above,
and the E4M3 rounding is checked against torch's for every BF16 value. Where K or V lies so near a
tie that float32 arithmetic may round it the other way, the logits move far more than the arithmetic
does. golden-fp8 has no such value (see `firm`). golden-bf16 has some, as its steps are finer and
ties more frequent: reference.py itself in float32 was off by up to 2e-4 with the seeds tried, so
compare to 1e-3 there; BF16 moves the logits by 4e-3, FP8 by 0.1.

It also refuses a case that proves little: the router's choice must be clear of ties (margins over
1e-4), the SwiGLU limit must bind somewhere, and each mutation of the model listed in `mutations`
(another window, factor, nibble order, no sinks ..) must move the logits by 1e-3 or more. Where a
seed falls short, take the next.

Made with Python 3.12, numpy 2.5.5, safetensors 0.8.0, torch 2.13.0, transformers 5.23.0, accelerate
1.15.0, and for --openai the directory above gpt_oss of the package gpt-oss 0.0.9 unpacked. Takes
about a minute on two cores.
"""
import argparse
import copy
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

sys.dont_write_bytecode = True
import reference
from layouts import dequantised_layout, original_layout, write
from official import openai_layers, openai_loads, transformers_layers, transformers_loads, transformers_rope

HERE = pathlib.Path(__file__).parent
AGREE = 1e-5
MARGIN = 1e-4
SENSITIVE = 1e-3
torch.set_grad_enabled(False)


# ---------------------------------------------------------------- cases

def rope(factor, **more):
    return dict(rope_type="yarn", factor=factor, original_max_position_embeddings=4096,
                beta_fast=32.0, beta_slow=1.0, **more)


def config(vocab, hidden, intermediate, heads, kv_heads, experts_per_token=4, **more):
    return dict(
        attention_bias=True, head_dim=64, hidden_act="silu", hidden_size=hidden,
        initial_context_length=4096, intermediate_size=intermediate, max_position_embeddings=131072,
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        num_experts_per_tok=experts_per_token, vocab_size=vocab, rms_norm_eps=1e-5, swiglu_limit=7.0,
        tie_word_embeddings=False, eos_token_id=vocab - 1, pad_token_id=vocab - 2,
        quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=[
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]),
        **more)


def uniform(layers, experts, window, **more):
    types = ["sliding_attention", "full_attention"] * layers
    return config(architectures=["GptOssForCausalLM"], model_type="gpt_oss", num_hidden_layers=layers,
                  layer_types=types[:layers], num_local_experts=experts, sliding_window=window, **more)


def puzzle(blocks, **more):
    blocks = [dict(num_local_experts=e, sliding_window=w) for e, w in blocks]
    types = ["sliding_attention" if b["sliding_window"] else "full_attention" for b in blocks]
    return config(architectures=["GptOssPuzzleForCausalLM"], model_type="gpt_oss_puzzle",
                  num_hidden_layers=len(blocks), layer_types=types, block_configs=blocks, **more)


# name -> seed, tokens, config.json and how to write it.
CASES = {
    # The parents' shape: alternate windows, factor 32. Also written in two other layouts below.
    "uniform": dict(
        seed=1, tokens=80, hidden_states=True,
        config=uniform(4, 8, 16, vocab=192, hidden=64, intermediate=32, heads=4, kv_heads=1,
                       rope_theta=150000, rope_scaling=rope(32.0, truncate=False))),
    # truncate true, and the embedding so small that rms_norm_eps counts; as transformers 5 writes it.
    "uniform-truncate": dict(
        seed=1, tokens=150, embedding=0.01,
        config=uniform(2, 5, 60, vocab=96, hidden=128, intermediate=96, heads=3, kv_heads=1,
                       rope_parameters=rope(32.0, truncate=True, rope_theta=150000))),
    # Experts and windows that differ: smaller than, equal to and larger than the sequence, and none.
    # truncate is absent, which means true. Sharded, with one layer's blocks and scales apart.
    "puzzle": dict(
        seed=1, tokens=96, hidden_states=True, kv_scales=True, shards=3,
        config=puzzle([(16, 16), (8, None), (8, 96), (16, 200), (8, 1)], vocab=160, hidden=64,
                      intermediate=64, heads=8, kv_heads=1, rope_theta=150000,
                      rope_scaling=rope(56.0))),
    # Crosses several pages of 64 tokens and several windows.
    "puzzle-long": dict(
        seed=1, tokens=331, far=96,
        config=puzzle([(12, 16), (6, None), (12, 100), (6, 128), (6, 200), (12, None)], vocab=128,
                      hidden=64, intermediate=64, heads=4, kv_heads=2, rope_theta=150000,
                      rope_scaling=rope(56.0, truncate=False))),
    # For caches that round: every expert is chosen, so that rounding cannot change the choice.
    "puzzle-all-experts": dict(
        seed=408, tokens=70, kv_scales=True, caches=True,
        config=puzzle([(4, 32), (4, None)], vocab=128, hidden=96, intermediate=32, heads=8,
                      kv_heads=2, rope_theta=150000, rope_scaling=rope(56.0, truncate=False))),
}


def random_weights(case, rng):
    """Every tensor of the checkpoint as stored: BF16, and MXFP4 blocks and scales from random bytes."""
    c = case["config"]
    hidden, inner, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim

    def normal(*shape, std, mean=0.0):
        return torch.from_numpy(rng.standard_normal(shape) * std + mean).bfloat16()

    t = {"model.embed_tokens.weight": normal(c["vocab_size"], hidden, std=case.get("embedding", 1.0)),
         "model.norm.weight": normal(hidden, std=0.1, mean=1.0),
         "lm_head.weight": normal(c["vocab_size"], hidden, std=2 / hidden**0.5)}
    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        t[p + "input_layernorm.weight"] = normal(hidden, std=0.1, mean=1.0)
        t[p + "post_attention_layernorm.weight"] = normal(hidden, std=0.1, mean=1.0)
        shapes = (("q", q, hidden, 0.9), ("k", kv, hidden, 0.9), ("v", kv, hidden, 1.0), ("o", hidden, q, 1.0))
        for name, rows, columns, gain in shapes:
            t[p + f"self_attn.{name}_proj.weight"] = normal(rows, columns, std=gain / columns**0.5)
            t[p + f"self_attn.{name}_proj.bias"] = normal(rows, std=0.2)
        t[p + "self_attn.sinks"] = normal(c["num_attention_heads"], std=1.0, mean=1.0)
        experts = c.get("num_local_experts") or c["block_configs"][n]["num_local_experts"]
        t[p + "mlp.router.weight"] = normal(experts, hidden, std=1.5 / hidden**0.5)
        t[p + "mlp.router.bias"] = normal(experts, std=0.3)
        # A random nibble has a root mean square of 2.93; the exponents vary around the wanted gain.
        for name, rows, columns, gain in (("gate_up", 2 * inner, hidden, 1.5), ("down", hidden, inner, 0.3)):
            middle = round(np.log2(gain / columns**0.5 / 2.93))
            scales = 127 + middle + rng.integers(-1, 2, (experts, rows, columns // 32))
            blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16))
            t[p + f"mlp.experts.{name}_proj_bias"] = normal(experts, rows, std=0.3)
            t[p + f"mlp.experts.{name}_proj_blocks"] = torch.from_numpy(blocks.astype(np.uint8))
            t[p + f"mlp.experts.{name}_proj_scales"] = torch.from_numpy(scales.astype(np.uint8))
        if case.get("kv_scales"):
            # Calibrated scales are about the largest value over 448; these saturate now and then.
            t[p + "self_attn.k_scale"] = torch.tensor(0.008 + 0.001 * n)
            t[p + "self_attn.v_scale"] = torch.tensor(0.005 + 0.0005 * n)
    return t


# ---------------------------------------------------------------- what a golden must satisfy

def distance(a, b):
    """Largest relative error over the tokens, each measured against its own row."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    worst = (np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max()
    assert np.isfinite(worst)
    return worst


def agree(what, theirs, ours):
    d = distance(theirs, ours)
    print(f"  {what}: {d:.1e}")
    assert d <= AGREE, f"{what} is off by {d}"


def mutations(config, tensors):
    """(what is wrong, config, tensors): mistakes that the logits must show."""
    c, t = config, tensors
    scaling = "rope_scaling" if "rope_scaling" in c else "rope_parameters"

    def with_rope(**more):
        return dict(c, **{scaling: dict(c[scaling], **more)})

    def mapped(ending, change):
        return {n: change(v) if n.endswith(ending) else v for n, v in t.items()}

    def window(change, n):
        if "block_configs" not in c:
            return dict(c, sliding_window=change(c["sliding_window"]))
        blocks = copy.deepcopy(c["block_configs"])
        blocks[n]["sliding_window"] = change(blocks[n]["sliding_window"])
        return dict(c, block_configs=blocks)

    yield "truncate the other way", with_rope(truncate=not c[scaling].get("truncate", True)), t
    yield "the other factor", with_rope(factor=88.0 - c[scaling]["factor"]), t
    yield "SwiGLU limit 8", dict(c, swiglu_limit=8.0), t
    yield "SwiGLU slope 1.6", dict(c, swiglu_alpha=1.6), t
    yield "three experts", dict(c, num_experts_per_tok=3), t
    for n, w in enumerate(reference.windows(c)):
        if w is not None and w < c["tokens"]:
            yield f"window of layer {n} wider by one", window(lambda w: w + 1, n), t
        if w is not None and 1 < w <= c["tokens"]:
            yield f"window of layer {n} narrower by one", window(lambda w: w - 1, n), t
    yield "no sinks", c, mapped("sinks", lambda v: np.full_like(v, -1e4))
    yield "nibbles swapped", c, mapped("_blocks", lambda v: v >> 4 | v << 4)
    yield "scales one exponent up", c, mapped("_scales", lambda v: v + 1)
    for name in ("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias", "router.bias",
                 "gate_up_proj_bias", "down_proj_bias"):
        yield f"no {name}", c, mapped(name, np.zeros_like)
    yield "gate and up swapped", c, mapped(
        ("gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias"),
        lambda v: np.stack([v[:, 1::2], v[:, 0::2]], 2).reshape(v.shape))
    half = c["head_dim"] // 2
    yield "rotary pairs (2i, 2i + 1)", c, mapped(
        ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"),
        lambda v: v.reshape(-1, half, 2, *v.shape[1:]).swapaxes(1, 2).reshape(v.shape))
    if c["num_key_value_heads"] > 1:
        yield "key/value heads swapped", c, mapped(
            ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"),
            lambda v: v.reshape(-1, c["head_dim"], *v.shape[1:])[::-1].reshape(v.shape))
    yield "head tied", c, dict(t, **{"lm_head.weight": t["model.embed_tokens.weight"]})
    yield "the norms swapped", c, dict(t, **{
        n: t[n.replace("input_", "post_attention_")] for n in t if n.endswith("input_layernorm.weight")})


def firm(x, scale):
    """reference.fp8, where some value saturates and none is within float32's reach of a tie."""
    assert np.abs(x / scale).max() > 448
    reach = 1e-6 * np.sqrt((x * x).mean())
    assert np.array_equal(reference.fp8(x - reach, scale), reference.fp8(x + reach, scale)), "take another seed"
    return reference.fp8(x, scale)


def check_e4m3():
    """reference.fp8 against torch's conversion for every finite BF16 value."""
    bits = np.arange(65536, dtype=np.uint32)
    x = (bits << 16).view(np.float32)
    x = x[np.isfinite(x)]
    theirs = torch.from_numpy(x).clamp(-448, 448).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(reference.fp8(x.astype(np.float64), 1.0).astype(np.float32), theirs)
    theirs = torch.from_numpy(x.astype(np.float64) * (1 + 1e-3)).float()
    ours = reference.bf16(theirs.double().numpy(), 1.0)
    assert np.array_equal(ours, theirs.bfloat16().double().numpy(), equal_nan=True)


# ---------------------------------------------------------------- making them

def save_golden(path, ids, positions, logits, hidden=(), margins=(), **more):
    out = {"input_ids": ids, "positions": positions, "logits": np.float32(logits)}
    out |= {f"hidden.{n}": np.float32(h) for n, h in enumerate(hidden)}
    out |= {name: np.float32(v) for name, v in more.items()}
    if len(margins):
        out["margins"] = np.float32(np.stack(margins))
    save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in out.items()}, path)


def make_case(name, case, out):
    print(name)
    c, rng, t = case["config"], np.random.default_rng(case["seed"]), case["tokens"]
    tensors = random_weights(case, rng)
    ids, positions = rng.integers(0, c["vocab_size"], t), np.arange(t)
    write(out / name, c, tensors, case.get("shards", 1))
    stored = reference.read_checkpoint(out / name)
    torch_ids, torch_positions = torch.from_numpy(ids), torch.from_numpy(positions)
    scaling = c.get("rope_scaling") or c["rope_parameters"]
    frequencies = None
    if scaling.get("truncate", True):
        frequencies, _, _ = transformers_rope(dict(scaling, rope_theta=150000), positions)

    logits, trace = reference.forward(*stored, ids)
    agree("transformers, layer by layer", transformers_layers(c, tensors, torch_ids, torch_positions), logits)
    agree("openai, block by block", openai_layers(c, tensors, torch_ids, torch_positions, frequencies), logits)
    agree("this reference in float32", reference.forward(*stored, ids, dtype=np.float32)[0], logits)
    margin = min((m.min() for m in trace["margins"]), default=np.inf)
    print(f"  smallest router margin {margin:.1e}, {trace['clamped']} activations at the SwiGLU limit")
    assert margin >= MARGIN and trace["clamped"] > 0
    for what, config, changed in mutations(dict(c, tokens=t), stored[1]):
        moved = distance(reference.forward(config, changed, ids)[0], logits)
        print(f"    {what}: {moved:.1e}")
        assert moved >= SENSITIVE, f"{what} moves the logits by {moved} only"
    save_golden(out / name / "golden.safetensors", ids, positions, logits, margins=trace["margins"],
                hidden=trace["hidden"] if case.get("hidden_states") else ())

    if name == "uniform":
        agree("transformers' own loader", transformers_loads(out / name, torch_ids), logits)
        for layout, convert, load in (("uniform-dequantised", dequantised_layout, transformers_loads),
                                      ("uniform-original", original_layout, openai_loads)):
            write(out / layout, *convert(c, tensors))
            agree(f"own loader of {layout}", load(out / layout, torch_ids), logits)
            save_golden(out / layout / "golden.safetensors", ids, positions, logits, margins=trace["margins"])
    if "far" in case:
        ids, positions = ids[: case["far"]], 70_000 + np.arange(case["far"])
        logits, trace = reference.forward(*stored, ids, positions)
        rounded, _ = reference.forward(*stored, ids, positions, angles=np.float32)
        frequencies = torch.from_numpy(reference.yarn(c)[0]).float()
        inputs = c, tensors, torch.from_numpy(ids), torch.from_numpy(positions), frequencies
        agree("transformers from position 70,000", transformers_layers(*inputs), rounded)
        agree("openai from position 70,000", openai_layers(*inputs), rounded)
        print(f"  angles in float32 move the logits by {distance(rounded, logits):.1e}")
        save_golden(out / name / "golden-far.safetensors", ids, positions, logits,
                    margins=trace["margins"], logits_f32_angles=rounded)
    if case.get("caches"):
        for cache in (reference.bf16, reference.fp8):
            rounded, _ = reference.forward(*stored, ids, cache=firm if cache is reference.fp8 else cache)
            single, _ = reference.forward(*stored, ids, cache=cache, dtype=np.float32)
            print(f"  {cache.__name__} cache: {distance(rounded, logits):.1e} from exact,"
                  f" float32 arithmetic {distance(single, rounded):.1e} from float64")
            save_golden(out / name / f"golden-{cache.__name__}.safetensors", ids, positions, rounded)


def make_yarn(out):
    print("yarn")
    positions = np.array([0, 1, 63, 64, 127, 4095, 4096, 8192, 70_000, 131_071])
    tables = {"positions": torch.from_numpy(positions)}
    for factor in (32.0, 56.0):
        for truncate in (False, True):
            key = f"factor_{factor:.0f}.truncate_{str(truncate).lower()}"
            scaling = rope(factor, truncate=truncate, rope_theta=150000)
            frequency, scale = reference.yarn(dict(head_dim=64, rope_parameters=scaling))
            angle = positions[:, None] * frequency
            cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
            theirs = transformers_rope(scaling, positions)
            assert (np.abs(theirs[0].numpy() / frequency - 1) < 5e-7).all()
            bound = 1e-6 + 1e-6 * angle  # float32 angles
            assert (np.abs(theirs[1] - cos) < bound).all() and (np.abs(theirs[2] - sin) < bound).all()
            for name, value in (("inv_freq", frequency), ("cos", cos), ("sin", sin)):
                tables[f"{name}.{key}"] = torch.from_numpy(value)
            print(f"  {key}: scale {scale:.9g},",
                  " ".join(f"[{i}] {frequency[i]:.9g}" for i in (9, 12, 16, 17, 18, 31)))
    absent, true = rope(56.0, rope_theta=150000), rope(56.0, rope_theta=150000, truncate=True)
    theirs = (transformers_rope(p, positions)[0] for p in (absent, true))
    assert torch.equal(*theirs), "truncate absent means true"
    save_file(tables, out / "yarn.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--openai", required=True, help="the directory that holds the package gpt_oss")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--only", help="make this case alone")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.openai)
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_e4m3()
    make_yarn(arguments.out)
    for name, case in CASES.items():
        if arguments.only in (None, name):
            make_case(name, case, arguments.out)
