"""Published weights of the Llama, Qwen2 and Qwen3 families (dense), for model.py and back.

A folder is what Hugging Face transformers reads and writes: config.json, *.safetensors (one file, or shards and their
index). A feature that model.py does not have is refused by name: it would change the model in silence.
"""

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import ModelConfig, Transformer
from published.folder import TAKEN_OVER, read_json, taken_over
from support.errors import UserError, reading
from support.files import check_finite, replace

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# The numbers of a ModelConfig as config.json calls them, and the largest they may be (others are whole, up to 2**24).
NUMBERS = {name: name for name in "vocab_size hidden_size intermediate_size head_dim rope_theta".split()}
NUMBERS |= {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "norm_eps": "rms_norm_eps"}
NUMBERS |= {"num_kv_heads": "num_key_value_heads", "max_seq_len": "max_position_embeddings"}
SCALING = (
    "factor low_freq_factor high_freq_factor original_max_position_embeddings".split()
)  # of ModelConfig's, in order
LARGEST = dict.fromkeys(("rope_theta", "rms_norm_eps", *SCALING), sys.float_info.max) | {"num_hidden_layers": 1000}

# What a config may say about features that model.py lacks: nothing, or that they are off.
OFF = {"hidden_act": "silu", "attention_dropout": 0, "partial_rotary_factor": 1, "is_causal": True}
OFF |= dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), False)
OFF |= dict.fromkeys(("num_experts", "num_local_experts", "quantization_config", "text_config", "transformers_weights"))

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(folder: str | Path, dtype: torch.dtype | None = None) -> Transformer:
    """The folder's model on the CPU, in `dtype` or in the files' own; UserError for what is missing, odd or unknown."""
    with reading(f"{folder}: no model that can be read"):
        folder = Path(folder)
        taken_over(folder)  # what cannot be exported is said before anything is trained
        config = read_config(folder)
        published = read_weights(folder)
        check_finite(published)
        published = {name: x for name, x in published.items() if not name.endswith("rotary_emb.inv_freq")}  # old files
        dtype = dtype or functools.reduce(torch.promote_types, {x.dtype for x in published.values()})
        head = published.pop("lm_head.weight", None) if config.tie_embeddings else None
        embed = published.get("model.embed_tokens.weight")
        if not (head is None or embed is None or torch.equal(head.to(embed.dtype), embed)):
            said = "config.json ties the head to the embedding, and the weights hold another lm_head"
            raise UserError(f"{folder}: {said}")
        weights = {}
        for ours, theirs in published_names(config).items():
            if missing := [name for name in theirs if name not in published]:
                raise UserError(f"{folder}: the weights lack {missing[0]}")
            weights[ours] = torch.cat([published.pop(name) for name in theirs]).to(dtype)
        if published:
            raise UserError(f"{folder}: the weights hold {sorted(published)[0]}, which model.py has no place for")
        if config.tie_embeddings:
            weights["head.weight"] = weights["embed.weight"]
        with torch.device("meta"):  # no memory and no random numbers for weights that are read
            model = Transformer(config)
        for name, parameter in model.named_parameters():
            if parameter.shape != weights[name].shape:
                found, name = tuple(weights[name].shape), " + ".join(published_names(config)[name])
                raise UserError(f"{folder}: {name} has the shape {found}; config.json says {tuple(parameter.shape)}")
        model.load_state_dict(weights, assign=True)
        if config.tie_embeddings:
            model.head.weight = model.embed.weight
        return model


def read_config(folder: Path) -> ModelConfig:
    """config.json as a ModelConfig; UserError names the first feature or value that model.py does not have."""
    path = folder / "config.json"
    c = read_json(path)
    if (family := c.get("model_type")) not in list(ARCHITECTURES):
        raise UserError(f"{path}: model_type {family!r:.60} is not supported; {' and '.join(ARCHITECTURES)} are")
    rope = check_features(c, path)
    c["rope_theta"] = rope["rope_theta"]
    heads, width = (number(c, name, path) for name in ("num_attention_heads", "hidden_size"))
    if not isinstance(tied := c.get("tie_word_embeddings"), bool | None):
        raise UserError(f"{path}: tie_word_embeddings {tied!r:.60} is not supported; true or false is")
    left_out = {"num_key_value_heads": heads, "head_dim": 128 if family == "qwen3" else width // heads}
    left_out |= {"max_position_embeddings": 2048 if family == "llama" else 32768}  # as transformers does
    left_out |= {"rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    numbers = {ours: number(c, theirs, path, left_out.get(theirs)) for ours, theirs in NUMBERS.items()}
    kind = {"tie_embeddings": bool(tied), "qk_norm": family == "qwen3", "qkv_bias": family == "qwen2"}
    config = ModelConfig(**numbers, **kind, rope_scaling=scaling(rope, path))
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        sizes = f"{config.num_heads} heads of {config.head_dim} over {config.num_kv_heads} key/value heads"
        raise UserError(f"{path}: {sizes}: the first must be a multiple of the last, the width even")
    return config


def check_features(c: dict, path: Path) -> dict:
    """What config.json says of rotary positions, rope_theta at least; UserError for a feature that model.py lacks."""
    rope = {"rope_theta": c.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):  # as older and newer versions call it
        if not isinstance(c.get(name), dict | None):
            raise UserError(f"{path}: {name} {c[name]!r:.60} is not supported; a JSON object is")
        for key, value in (c.get(name) or {}).items():
            if rope.get(key) not in (None, value):
                raise UserError(f"{path}: {key} {rope[key]!r:.60} and, in {name}, {value!r:.60}; one is supported")
            rope[key] = value
    if nested := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise UserError(f"{path}: rope parameters of their own for {nested[0]!r} are not supported; one set for all is")
    rope["rope_type"] = kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rope type {kind!r:.60} is not supported; 'default' and 'llama3' are")
    for name, off in OFF.items():
        value = rope.get(name, c.get(name))
        if value is not None and value != off and (value or off is not None):
            raise UserError(f"{path}: {name} {value!r:.60} is not supported; {off!r} is")
    layers = c.get("layer_types") or []
    odd = [kind for kind in layers if kind != "full_attention"] if isinstance(layers, list) else [layers]
    if layers and not odd and len(layers) != c.get("num_hidden_layers"):
        odd = [f"of {len(layers)} layers"]
    if odd:
        raise UserError(f"{path}: layer_types {odd[0]!r:.60} is not supported; 'full_attention' is")
    return rope


def scaling(rope: dict, path: Path) -> tuple[float, float, float, float] | None:
    """The numbers of rope type llama3, as ModelConfig has them; None for another type."""
    if rope["rope_type"] != "llama3":
        return None
    factor, low, high, context = (number(rope, name, path) for name in SCALING)
    if low >= high:
        raise UserError(f"{path}: low_freq_factor {low:g} has to be smaller than high_freq_factor {high:g}")
    return factor, low, high, context


def number(c: dict, name: str, path: Path, left_out: Any = None) -> Any:
    """A number of config.json, or `left_out`; UserError, before anything of its size is made, for one no model has."""
    value = left_out if c.get(name) is None else c[name]
    if value is None:
        raise UserError(f"{path}: {name} is missing")
    largest = LARGEST.get(name, 2**24)
    kind = type(largest)
    if type(value) not in (int, kind) or not 0 < value <= largest:
        what = f"whole number up to {largest:,}" if kind is int else "number above 0"
        raise UserError(f"{path}: {name} {value!r:.60} is no size of a model; a {what} is needed")
    return kind(value)


def published_names(config: ModelConfig) -> dict[str, list[str]]:
    """Each parameter of ours, and the published ones that lie in it one below the other."""
    names = {"embed.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if not config.tie_embeddings:
        names["head.weight"] = ["lm_head.weight"]
    qkv = "attention.qkv self_attn.q_proj self_attn.k_proj self_attn.v_proj"
    block = f"attention_norm input_layernorm, mlp_norm post_attention_layernorm, {qkv}, "
    block += "attention.out self_attn.o_proj, mlp.gate_up mlp.gate_proj mlp.up_proj, mlp.down mlp.down_proj"
    if config.qk_norm:
        block += ", attention.q_norm self_attn.q_norm, attention.k_norm self_attn.k_norm"
    parts = [(line.split(), "weight") for line in block.split(",")] + [(qkv.split(), "bias")] * config.qkv_bias
    for i in range(config.num_layers):
        for (ours, *theirs), part in parts:
            names[f"blocks.{i}.{ours}.{part}"] = [f"model.layers.{i}.{name}.{part}" for name in theirs]
    return names


def safetensors_torch():
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise UserError("published weights need the package safetensors: pip install safetensors") from error


def weight_files(folder: Path) -> list[Path]:
    """The single file, or all shards of the index; UserError where they are not all there, or where both are."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: adapter_config.json is not supported: merge the adapter into the model first")
    single, index = folder / WEIGHTS, folder / INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing and single.is_file():
        return [single]  # the index is that of other weights, to transformers too
    if missing or not names:
        raise UserError(f"{folder}: no {(missing or [WEIGHTS])[0]}; weights are read from *.safetensors in it alone")
    if single.is_file() and names != [WEIGHTS]:
        raise UserError(f"{folder} holds {WEIGHTS} and all shards of {INDEX}: remove the older of the two")
    return [folder / name for name in names]


def read_weights(folder: Path) -> dict[str, Tensor]:
    read = safetensors_torch().load_file
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            shard = read(path)
        except Exception as error:  # torn or foreign: the library has an exception class of its own
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if weights.keys() & shard.keys():
            raise UserError(f"{path} holds {min(weights.keys() & shard.keys())}, as another shard does")
        weights |= shard
    return weights


def save(
    model: Transformer, out: str | Path, source: str | Path | None = None, more: dict[str, bytes] | None = None
) -> None:
    """Write a folder that transformers loads, weights bit for bit; tokenizer and further settings as in `source`.

    more: files in place of the source's. The weights come last: until they are there the folder is refused.
    """
    c, out = model.config, Path(out)
    copied = {**(taken_over(Path(source)) if source else {}), **(more or {})}
    config = read_json(Path(source) / "config.json") if source else describe(c)
    config.pop("torch_dtype", None)  # what older versions call it
    config["dtype"] = str(model.embed.weight.dtype).removeprefix("torch.")
    copied["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    heads = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
    weights: dict[str, Tensor] = {}
    ours = model.state_dict()
    for name, theirs in published_names(c).items():
        rows = heads if len(theirs) == 3 else [len(ours[name]) // len(theirs)] * len(theirs)
        weights |= zip(theirs, ours[name].cpu().split(rows))
    if out.is_symlink():
        out.unlink()  # the folder is made here, not where a link leads
    out.mkdir(parents=True, exist_ok=True)
    for name in {WEIGHTS, INDEX, *(TAKEN_OVER if source else ())} - copied.keys():  # of a model that was here before
        (out / name).unlink(missing_ok=True)
    for name, content in copied.items():
        replace(out / name, lambda path: path.write_bytes(content))
    with reading(f"{out / WEIGHTS} cannot be written"):  # safetensors tells of a full disk in a class of its own
        replace(out / WEIGHTS, lambda path: safetensors_torch().save_file(weights, path, metadata={"format": "pt"}))


def describe(c: ModelConfig) -> dict:
    """A config.json of transformers for a model that came from no folder."""
    family = {(False, False): "llama", (True, False): "qwen3", (False, True): "qwen2"}[c.qk_norm, c.qkv_bias]
    rope = {"rope_type": "llama3", **dict(zip(SCALING, c.rope_scaling))} if c.rope_scaling else {"rope_type": "default"}
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        **{theirs: getattr(c, ours) for ours, theirs in NUMBERS.items()},
        "hidden_act": "silu",
        "rope_parameters": {**rope, "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.tie_embeddings,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }
