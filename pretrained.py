"""Published weights and tokenizers of the Llama and Qwen3 families (dense), for model.py and back.

A folder is what Hugging Face transformers reads and writes: config.json, *.safetensors (one file, or shards and their
index), tokenizer.json. A feature that model.py does not have is refused by name: it would change the model in silence.
"""

import json
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from errors import UserError, reading
from model import ModelConfig, Transformer
from run_files import check_finite, replace

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# What a config may say about features that model.py lacks: nothing, or that they are off.
OFF = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0,
    "use_sliding_window": False,
    "num_experts": None,
    "num_local_experts": None,
    "quantization_config": None,
    "partial_rotary_factor": 1,
}

# Beside config.json and the weights: what an export takes over from the folder that the weights came from.
TAKEN_OVER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)

GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same where every digit is a piece of its own, and ends the piece before it (SmolLM2)
DIGIT_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


# ---- weights ---------------------------------------------------------------------------------------------------------


def load(folder: str | Path, dtype: torch.dtype | None = None) -> Transformer:
    """The folder's model on the CPU, in `dtype` or in the files' own; UserError for what is missing, odd or unknown."""
    with reading(f"{folder}: no model that can be read"):
        return assemble(Path(folder), dtype)


def assemble(folder: Path, dtype: torch.dtype | None) -> Transformer:
    config = read_config(folder)
    published = read_weights(folder)
    check_finite(published)
    published = {name: x for name, x in published.items() if not name.endswith("rotary_emb.inv_freq")}  # old files
    if config.tie_embeddings:
        published.pop("lm_head.weight", None)
    weights = {}
    for ours, theirs in published_names(config).items():
        missing = [name for name in theirs if name not in published]
        if missing:
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
            raise UserError(
                f"{folder}: {' + '.join(published_names(config)[name])} has the shape "
                f"{tuple(weights[name].shape)}; config.json says {tuple(parameter.shape)}"
            )
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model


def read_json(path: Path) -> dict:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path}: a JSON object is needed, not {type(read).__name__}")
    return read


def read_config(folder: Path) -> ModelConfig:
    """config.json as a ModelConfig; UserError names the first feature or value that model.py does not have."""
    path = folder / "config.json"
    c = read_json(path)
    family = c.get("model_type")
    if family not in list(ARCHITECTURES):
        raise UserError(f"{path}: model_type {family!r:.60} is not supported; {' and '.join(ARCHITECTURES)} are")
    c["rope_theta"] = check_features(c, path)
    heads, width = (number(c, name, path) for name in ("num_attention_heads", "hidden_size"))
    tied = c.get("tie_word_embeddings")
    if not isinstance(tied, bool | None):
        raise UserError(f"{path}: tie_word_embeddings {tied!r:.60} is not supported; true or false is")
    config = ModelConfig(  # values that are left out are those of transformers
        vocab_size=number(c, "vocab_size", path),
        hidden_size=width,
        intermediate_size=number(c, "intermediate_size", path),
        num_layers=number(c, "num_hidden_layers", path, largest=1000),
        num_heads=heads,
        num_kv_heads=number(c, "num_key_value_heads", path, heads),
        head_dim=number(c, "head_dim", path, 128 if family == "qwen3" else width // heads),
        max_seq_len=number(c, "max_position_embeddings", path, 32768 if family == "qwen3" else 2048),
        rope_theta=number(c, "rope_theta", path, 10000.0, float),
        norm_eps=number(c, "rms_norm_eps", path, 1e-6, float),
        tie_embeddings=bool(tied),
        qk_norm=family == "qwen3",
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UserError(
            f"{path}: {config.num_heads} heads of {config.head_dim} over {config.num_kv_heads} key/value heads: the "
            "first must be a multiple of the last, the width even"
        )
    return config


def check_features(c: dict, path: Path) -> Any:
    """The rotary base that config.json gives, None without one; UserError for a feature that model.py lacks."""
    rope = {"rope_theta": c.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):  # as older and newer versions call it
        if not isinstance(c.get(name), dict | None):
            raise UserError(f"{path}: {name} {c[name]!r:.60} is not supported; a JSON object is")
        rope |= c.get(name) or {}
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise UserError(f"{path}: rope parameters of their own for {nested[0]!r} are not supported; one set for all is")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope type {kind!r:.60} is not supported; 'default' is")
    for name, off in OFF.items():
        value = rope.get(name, c.get(name))
        if value is not None and value != off and (value or off is not None):
            raise UserError(f"{path}: {name} {value!r:.60} is not supported; {off!r} is")
    layers = c.get("layer_types") or []
    odd = [kind for kind in layers if kind != "full_attention"] if isinstance(layers, list) else [layers]
    if odd:
        raise UserError(f"{path}: layer_types {odd[0]!r:.60} is not supported; 'full_attention' is")
    return rope["rope_theta"]


def number(c: dict, name: str, path: Path, left_out: Any = None, kind: type = int, largest: int = 2**24) -> Any:
    """A number of config.json, or `left_out`; UserError for one that no model has, before anything of its size is made.

    Whole ones are at most `largest`, others finite.
    """
    value = left_out if c.get(name) is None else c[name]
    if value is None:
        raise UserError(f"{path}: {name} is missing")
    if type(value) not in (int, kind) or not 0 < value <= (largest if kind is int else sys.float_info.max):
        what = f"whole number up to {largest:,}" if kind is int else "number above 0"
        raise UserError(f"{path}: {name} {value!r:.60} is no size of a model; a {what} is needed")
    return kind(value)


def published_names(config: ModelConfig) -> dict[str, list[str]]:
    """Each parameter of ours, and the published ones that lie in it one below the other."""
    names = {"embed": ["model.embed_tokens"], "norm": ["model.norm"]}
    if not config.tie_embeddings:
        names["head"] = ["lm_head"]
    block = {
        "attention_norm": ["input_layernorm"],
        "mlp_norm": ["post_attention_layernorm"],
        "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.out": ["self_attn.o_proj"],
        "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down": ["mlp.down_proj"],
    }
    if config.qk_norm:
        block |= {"attention.q_norm": ["self_attn.q_norm"], "attention.k_norm": ["self_attn.k_norm"]}
    for i in range(config.num_layers):
        names |= {
            f"blocks.{i}.{ours}": [f"model.layers.{i}.{name}" for name in theirs] for ours, theirs in block.items()
        }
    return {f"{ours}.weight": [f"{name}.weight" for name in theirs] for ours, theirs in names.items()}


def safetensors_torch():
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("published weights need the package safetensors: pip install safetensors") from error
    return safetensors.torch


def read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    if not (folder / files[0]).is_file():
        raise UserError(f"{folder}: no {files[0]}; weights are read from *.safetensors alone")
    read = safetensors_torch().load_file
    weights: dict[str, Tensor] = {}
    for name in files:
        try:
            weights |= read(folder / name)
        except Exception as error:  # torn or foreign: the library has an exception class of its own
            raise UserError(f"{folder / name} cannot be read: {' '.join(str(error).split())}") from error
    return weights


def save(model: Transformer, out: str | Path, source: str | Path | None = None) -> None:
    """Write a folder that transformers loads, weights bit for bit; tokenizer and further settings as in `source`."""
    c, out = model.config, Path(out)
    out.mkdir(parents=True, exist_ok=True)
    heads = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
    weights: dict[str, Tensor] = {}
    ours = model.state_dict()
    for name, theirs in published_names(c).items():
        rows = heads if len(theirs) == 3 else [len(ours[name]) // len(theirs)] * len(theirs)
        weights |= zip(theirs, ours[name].cpu().split(rows))
    replace(
        out / "model.safetensors", lambda path: safetensors_torch().save_file(weights, path, metadata={"format": "pt"})
    )
    config = read_json(Path(source) / "config.json") if source else describe(c)
    config.pop("torch_dtype", None)  # what older versions call it
    config["dtype"] = str(model.embed.weight.dtype).removeprefix("torch.")
    replace(out / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    for path in [Path(source) / name for name in TAKEN_OVER] if source else ():
        if path.is_file():
            shutil.copyfile(path, out / path.name)


def describe(c: ModelConfig) -> dict:
    """A config.json of transformers for a model that came from no folder."""
    family = "qwen3" if c.qk_norm else "llama"
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


# ---- tokenizer -------------------------------------------------------------------------------------------------------


class Tokenizer:
    """tiktoken on a published vocabulary, with what tiktoken leaves to its caller; its methods carry tiktoken's names.

    Differs from `tokenizers` on purpose in one thing: added tokens inside a text are plain text.
    """

    def __init__(self, encoding: tiktoken.Encoding, nfc: bool, ranks: dict[bytes, int]):
        self.encoding, self.nfc, self.n_vocab = encoding, nfc, encoding.n_vocab
        self.special_tokens_set, self.encode_single_token = encoding.special_tokens_set, encoding.encode_single_token
        self.missing = {b for b in range(256) if bytes([b]) not in ranks}
        self.bytes_of = {rank: piece for piece, rank in ranks.items()}
        self.bytes_of |= {encoding.encode_single_token(s): s.encode() for s in encoding.special_tokens_set}

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of plain text; ValueError for characters that the vocabulary cannot write."""
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        for character in text if self.missing else ():
            if set(character.encode(errors="replace")) & self.missing:
                raise ValueError(f"the tokenizer has no token for {character!r}, in {text[:60]!r}")
        try:
            return self.encoding.encode_ordinary(text)
        except BaseException as error:  # a panic of tiktoken's Rust part, which is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the tokenizer fails on a text of {len(text)} characters, {text[:60]!r}") from error

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token; of an id that the model has and the tokenizer lacks: U+FFFD."""
        return self.bytes_of.get(token, b"\xef\xbf\xbd")

    def decode(self, tokens: list[int]) -> str:
        """Text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.decode_single_token_bytes, tokens)).decode(errors="replace")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The byte-level BPE of tokenizer.json; UserError for another kind, or one that tiktoken would read differently."""
    path = Path(folder) / "tokenizer.json"
    with reading(f"{path}: no tokenizer that can be read"):
        return build_tokenizer(read_json(path), path)


def build_tokenizer(t: dict, path: Path) -> Tokenizer:
    model, added = t["model"], {a["content"]: a["id"] for a in t.get("added_tokens") or []}
    for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} {model[name]!r} is not supported")
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"{path}: a {model['type']} model is not supported; byte-level BPE is")
    nfc, pieces = normalizes(t.get("normalizer"), path), pattern(t.get("pre_tokenizer"), path)
    ranks, merged, last = {}, set(), -1
    for merge in model["merges"]:
        token = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if token not in model["vocab"] or model["vocab"][token] < last:
            raise UserError(
                f"{path}: the merge of {token!r} does not follow the order of the token ids, by which tiktoken merges"
            )
        last = model["vocab"][token]
        merged.add(token)
    byte_of = {c: bytes([b]) for b, c in byte_characters().items()}
    for token, rank in model["vocab"].items():
        if token in merged or token in byte_of:
            ranks[b"".join(byte_of[c] for c in token)] = rank
        elif token not in added:
            raise UserError(f"{path}: the token {token!r} is neither a byte nor a merge of two others")
    return Tokenizer(
        tiktoken.Encoding(path.parent.name, pat_str=pieces, mergeable_ranks=ranks, special_tokens=added), nfc, ranks
    )


def byte_characters() -> dict[int, str]:
    """The printable character that GPT-2 writes for each byte: itself, or the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def normalizes(normalizer: dict | None, path: Path) -> bool:
    """Whether text is brought to NFC first (Qwen) or left as it is (GPT-2, Llama 3)."""
    kinds = [n["type"] for n in (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])]
    if set(kinds) - {"NFC"}:
        raise UserError(f"{path}: the normalizer {kinds} is not supported; NFC is")
    return bool(kinds)


def pattern(pre_tokenizer: dict | None, path: Path) -> str:
    """The regular expression whose matches are the pieces within which bytes are merged."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    kinds = [step["type"] for step in steps]
    if kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space", True):
        plain = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and plain:
            return GPT2_PIECES
        if kinds == ["Digits", "ByteLevel"] and plain and steps[0].get("individual_digits"):
            return DIGIT_PIECES
        split = steps[0].get("pattern") or {}
        if (
            kinds == ["Split", "ByteLevel"]
            and not plain
            and "Regex" in split
            and not steps[0].get("invert")
            and steps[0].get("behavior") == "Isolated"
        ):
            return split["Regex"]
    raise UserError(
        f"{path}: the pre_tokenizer {' + '.join(kinds) or None} with these settings is not supported; "
        "those of GPT-2, Llama 3, Qwen and SmolLM2 are"
    )
