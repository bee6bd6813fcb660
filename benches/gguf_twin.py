"""The GGUF twin of a gpt-oss checkpoint, for llama.cpp: the same values, so that both engines do the same work.

usage: python gguf_twin.py CHECKPOINT_DIR OUT.gguf [bf16|q8_0]

Expert weights keep their MXFP4 codes and scales, norms, biases, sinks and routers become F32, dense weights are BF16 as
they are, or Q8_0. The vocabulary is that of the checkpoint's tokenizer.json; where there is none, as beside random
weights, one is made up and written there, so that servers of both engines load: bytes, numbered words up to the full
size, and harmony's special tokens. Every layer must have as many experts as the others and the released alternation of
windows: llama.cpp knows one count and one pattern. Needs numpy and gguf.
"""

import json
import pathlib
import sys

import gguf
import numpy as np

MXFP4, BF16, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("MXFP4", "BF16", "Q8_0"))


def stored(directory):
    """Every tensor of the checkpoint as a view of its mapped file: BF16 as its 16 bits, U8 as it is."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        file = np.memmap(path, np.uint8, "r")
        start = 8 + int(file[:8].view("<u8")[0])
        for name, entry in json.loads(bytes(file[8:start])).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype = {"BF16": np.uint16, "U8": np.uint8, "F32": np.float32}[entry["dtype"]]
                tensors[name] = np.frombuffer(file[start + begin : start + end], dtype).reshape(entry["shape"])
    return tensors


def f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def mxfp4(blocks, scales):
    """Blocks in GGUF's order: the scale, then byte j with element j in its low nibble and j + 16 in its high one. The
    checkpoint's byte j has elements 2j and 2j + 1."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    packed = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate([scales[..., None], packed], -1).reshape(*scales.shape[:-1], -1)


# Special tokens of o200k_harmony that have a name.
NAMED = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
# How o200k splits text before merging.
SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def byte_chars():
    """GPT-2's printable stand-ins for the 256 bytes."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in prints else next(rest) for byte in range(256)]


def made_up(vocab_size):
    """A tokenizer.json of so many tokens. One merge, because llama.cpp wants some."""
    if vocab_size <= max(NAMED):
        sys.exit(f"vocab_size is {vocab_size}, a vocabulary with harmony's tokens has more than {max(NAMED)}")
    words = byte_chars()
    space = words[32]
    words += [space + "t", *(f"{space}w{i}" for i in range(257, min(NAMED)))]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": NAMED.get(i, f"<|reserved_{i}|>"), **special} for i in range(min(NAMED), vocab_size)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": [[space, "t"]]},
    }


def add_vocabulary(writer, directory, vocab_size):
    """Token i of tokenizer.json as token i; ids without a token, which the embedding's padding has, are unused."""
    path = directory / "tokenizer.json"
    if not path.exists():
        path.write_text(json.dumps(made_up(vocab_size)))
    tokenizer = json.loads(path.read_text())
    tokens = [f"<|unused_{i}|>" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for word, i in tokenizer["model"]["vocab"].items():
        tokens[i], kinds[i] = word, gguf.TokenType.NORMAL
    ids = {}
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        ids[token["content"]] = token["id"]
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids["<|startoftext|>"])
    writer.add_eos_token_id(ids["<|return|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)


def main(directory, out, dense):
    directory = pathlib.Path(directory)
    config, tensors = json.loads((directory / "config.json").read_text()), stored(directory)
    blocks = config.get("block_configs") or []
    experts = {block["num_local_experts"] for block in blocks} or {config["num_local_experts"]}
    if len(experts) != 1:
        sys.exit(f"llama.cpp has one count of experts for all layers, {directory} has {sorted(experts)}")
    rope = config.get("rope_scaling") or config["rope_parameters"]
    writer = gguf.GGUFWriter(out, "gpt-oss", use_temp_file=True)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_count(experts.pop())
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(128)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope["rope_theta"]))
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, directory, config["vocab_size"])

    def add(name, array, dtype=None):
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=dtype)

    def matrix(name, bits):
        if dense == "bf16":
            add(name, bits.view(np.uint8), BF16)
        else:
            add(name, gguf.quants.quantize(f32(bits), Q8_0), Q8_0)

    matrix("token_embd.weight", tensors["model.embed_tokens.weight"])
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name, norm in (("attn_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm")):
            add(f"{theirs}{name}.weight", f32(tensors[f"{ours}{norm}.weight"]))
        for name, part in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
            part = f"{ours}self_attn.{part}_proj"
            matrix(f"{theirs}attn_{name}.weight", tensors[f"{part}.weight"])
            add(f"{theirs}attn_{name}.bias", f32(tensors[f"{part}.bias"]))
        add(f"{theirs}attn_sinks.weight", f32(tensors[f"{ours}self_attn.sinks"]))
        for part in ("weight", "bias"):
            add(f"{theirs}ffn_gate_inp.{part}", f32(tensors[f"{ours}mlp.router.{part}"]))
        # Rows of gate and up alternate in the checkpoint.
        for name, part, rows in (
            ("gate", "gate_up", slice(0, None, 2)),
            ("up", "gate_up", slice(1, None, 2)),
            ("down", "down", slice(None)),
        ):
            part = f"{ours}mlp.experts.{part}_proj"
            packed = mxfp4(tensors[f"{part}_blocks"][:, rows], tensors[f"{part}_scales"][:, rows])
            add(f"{theirs}ffn_{name}_exps.weight", packed, MXFP4)
            add(f"{theirs}ffn_{name}_exps.bias", f32(tensors[f"{part}_bias"][:, rows]))
    add("output_norm.weight", f32(tensors["model.norm.weight"]))
    matrix("output.weight", tensors["lm_head.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else "bf16")
