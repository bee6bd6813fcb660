"""The forward pass of the gpt-oss family in float64, written to be read. Needs numpy and nothing else.

    python reference.py CHECKPOINT 1,2,3      prints the logits of the last token

Reads checkpoints in the Hugging Face MXFP4 layout, one file or sharded. Shapes: T tokens, H hidden,
Q query heads, K key/value heads, D head_dim, I intermediate, E experts, V vocabulary.
make.py checks this file against Hugging Face transformers and openai's torch implementation.
"""
import json
import math
import pathlib
import sys

import numpy as np

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


# ---------------------------------------------------------------- files

def read_safetensors(path):
    """name -> array. BF16 comes back as float32, which holds it exactly."""
    raw = pathlib.Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        data = raw[8 + size + begin : 8 + size + end]
        if info["dtype"] == "BF16":
            array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            dtype = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "u1"}[info["dtype"]]
            array = np.frombuffer(data, dtype)
        tensors[name] = array.reshape(info["shape"])
    return tensors


def read_checkpoint(directory):
    """config.json as a dict, and every tensor of the checkpoint."""
    directory = pathlib.Path(directory)
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for file in files:
        tensors.update(read_safetensors(directory / file))
    return json.loads((directory / "config.json").read_text()), tensors


def dequantise(blocks, scales):
    """MXFP4 [.., n/32, 16] and [.., n/32] -> float64 [.., n]: the low nibble comes first."""
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    values = FP4[nibbles] * np.exp2(scales.astype(np.float64) - 127)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


# ---------------------------------------------------------------- configuration

def windows(config):
    """The window of each layer; None sees every earlier token."""
    if "block_configs" in config:
        return [block["sliding_window"] for block in config["block_configs"]]
    window = config["sliding_window"]
    return [window if t == "sliding_attention" else None for t in config["layer_types"]]


def yarn(config):
    """Inverse frequencies [D/2] and the factor of cosine and sine (arXiv 2309.00071)."""
    rope = config.get("rope_scaling") or config["rope_parameters"]
    theta = rope.get("rope_theta", config.get("rope_theta"))
    dim, factor = config["head_dim"], rope["factor"]

    def dimension(rotations):  # where a wave makes so many rotations over the original context
        context = rope["original_max_position_embeddings"]
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rope["beta_fast"]), dimension(rope["beta_slow"])
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    frequency = theta ** -(np.arange(0, dim, 2) / dim)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1


# ---------------------------------------------------------------- caches

def exact(x, scale):
    return x


def bf16(x, scale):
    """To the nearest BF16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(x.dtype)


def fp8(x, scale):
    """To scale times the nearest E4M3 (ties to even) of x / scale, saturating at 448."""
    y = np.clip(x / scale, -448, 448)
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(y), 2.0**-20))), -6)
    step = np.exp2(exponent - 3)  # three bits of mantissa; below 2^-6 the steps stay the same
    return (np.rint(y / step) * step * scale).astype(x.dtype)


# ---------------------------------------------------------------- the model

def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):
    """x [T, heads, D]: the pairs are (i, i + D/2)."""
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x, layer, config, window, rope, cache):
    t, d = len(x), config["head_dim"]
    q_heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def project(name, heads):
        y = x @ layer[f"self_attn.{name}_proj.weight"].T + layer[f"self_attn.{name}_proj.bias"]
        return y.reshape(t, heads, d)

    q = rotate(project("q", q_heads), *rope)
    k = cache(rotate(project("k", kv_heads), *rope), layer.get("self_attn.k_scale"))
    v = cache(project("v", kv_heads), layer.get("self_attn.v_scale"))
    distance = np.arange(t)[:, None] - np.arange(t)[None]
    visible = (distance >= 0) & (distance < (window or t))
    out = np.empty_like(q)
    for h in range(q_heads):
        kv = h // (q_heads // kv_heads)
        scores = np.where(visible, q[:, h] @ k[:, kv].T / math.sqrt(d), -np.inf)
        sink = layer["self_attn.sinks"][h]  # competes in the softmax, carries no value
        top = np.maximum(scores.max(-1, keepdims=True), sink)
        p = np.exp(scores - top)
        out[:, h] = p @ v[:, kv] / (p.sum(-1, keepdims=True) + np.exp(sink - top))
    return out.reshape(t, -1) @ layer["self_attn.o_proj.weight"].T + layer["self_attn.o_proj.bias"]


def swiglu(gate_up, limit, alpha):
    gate, up = gate_up[..., 0::2], gate_up[..., 1::2]
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


def mixture(x, layer, config, trace):
    """Experts chosen by router logit, weighted by a softmax over the chosen ones."""
    logits = x @ layer["mlp.router.weight"].T + layer["mlp.router.bias"]
    order = np.argsort(-logits, -1, kind="stable")
    k = config["num_experts_per_tok"]
    sorted_logits = np.take_along_axis(logits, order, -1)
    if logits.shape[-1] > k:
        trace["margins"].append(sorted_logits[:, k - 1] - sorted_logits[:, k])
    p = np.exp(sorted_logits[:, :k] - sorted_logits[:, :1])
    p /= p.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for e in range(logits.shape[-1]):
        token, rank = np.nonzero(order[:, :k] == e)
        if len(token) == 0:
            continue
        gate_up = x[token] @ layer["gate_up"][e].T + layer["mlp.experts.gate_up_proj_bias"][e]
        limit = config["swiglu_limit"]
        trace["clamped"] += (gate_up[:, 0::2] > limit).sum() + (np.abs(gate_up[:, 1::2]) > limit).sum()
        hidden = swiglu(gate_up, limit, config.get("swiglu_alpha", 1.702))
        y = hidden @ layer["down"][e].T + layer["mlp.experts.down_proj_bias"][e]
        out[token] += p[token, rank, None] * y
    return out


def forward(config, tensors, ids, positions=None, cache=exact, dtype=np.float64, angles=np.float64):
    """One sequence: ids [T] -> logits [T, V], and a trace.

    positions [T] default to 0, 1, ..; they turn the rotary embedding, the mask goes by order.
    cache rounds K (after RoPE) and V of every token, as a cache of that type would.
    dtype is the arithmetic throughout. angles is the type in which position times frequency is
    rounded before cosine and sine; the official implementations take float32, which is off by
    0.002 radian at position 70,000.
    trace: hidden, L + 1 arrays [T, H], the embedding and then the output of every layer;
    margins, for layers with a choice of experts, the last chosen logit minus the first rejected, [T].
    """
    def get(name):
        return tensors[name].astype(dtype)

    trace = {"hidden": [], "margins": [], "clamped": 0}
    positions = np.arange(len(ids)) if positions is None else positions
    frequency, scale = yarn(config)
    angle = positions.astype(angles)[:, None, None] * frequency.astype(angles)
    angle = angle.astype(np.float64)
    rope = ((np.cos(angle) * scale).astype(dtype), (np.sin(angle) * scale).astype(dtype))
    eps = config["rms_norm_eps"]

    x = get("model.embed_tokens.weight")[ids]
    trace["hidden"].append(x)
    for index, window in enumerate(windows(config)):
        prefix = f"model.layers.{index}."
        names = [n for n in tensors if n.startswith(prefix)]
        layer = {n.removeprefix(prefix): get(n) for n in names if tensors[n].dtype != np.uint8}
        for ours, theirs in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
            stored = (tensors[f"{prefix}mlp.experts.{theirs}_{part}"] for part in ("blocks", "scales"))
            layer[ours] = dequantise(*stored).astype(dtype)
        normed = rms_norm(x, layer["input_layernorm.weight"], eps)
        x = x + attention(normed, layer, config, window, rope, cache)
        normed = rms_norm(x, layer["post_attention_layernorm.weight"], eps)
        x = x + mixture(normed, layer, config, trace)
        trace["hidden"].append(x)
    return rms_norm(x, get("model.norm.weight"), eps) @ get("lm_head.weight").T, trace


if __name__ == "__main__":
    ids = np.array([int(i) for i in sys.argv[2].split(",")])
    logits, _ = forward(*read_checkpoint(sys.argv[1]), ids)
    print(json.dumps(logits[-1].tolist()))
