"""Published weights and tokenizers of the Llama and Qwen3 families (dense), for model.py and back.

A folder is what Hugging Face transformers reads and writes: config.json, *.safetensors (one file, or shards and their
index), tokenizer.json. A feature that model.py does not have is refused by name: it would change the model in silence.
"""

import functools
import importlib
import json
import math
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from model import ModelConfig, Transformer
from sources.worker import MEMORY, Scorer
from support.errors import UserError, reading
from support.files import check_finite, replace

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# The numbers of a ModelConfig as config.json calls them, and the largest they may be (others are whole, up to 2**24).
NUMBERS = {name: name for name in "vocab_size hidden_size intermediate_size head_dim rope_theta".split()}
NUMBERS |= {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "norm_eps": "rms_norm_eps"}
NUMBERS |= {"num_kv_heads": "num_key_value_heads", "max_seq_len": "max_position_embeddings"}
LARGEST = {"num_hidden_layers": 1000, "rope_theta": sys.float_info.max, "rms_norm_eps": sys.float_info.max}

# What a config may say about features that model.py lacks: nothing, or that they are off.
OFF = {"hidden_act": "silu", "attention_dropout": 0, "partial_rotary_factor": 1, "is_causal": True}
OFF |= dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), False)
OFF |= dict.fromkeys(("num_experts", "num_local_experts", "quantization_config", "text_config", "transformers_weights"))

# Beside config.json and the weights: what an export takes over from the folder that the weights came from.
TAKEN_OVER = "tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json merges.txt".split()
TAKEN_OVER += ["generation_config.json", "chat_template.jinja"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_FILE = 2**27  # of those that are read whole: tokenizers and settings

GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same where every digit is a piece of its own, and ends the piece before it (SmolLM2)
DIGIT_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
QWEN_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
QWEN_PIECES += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
# Read by tiktoken as by `tokenizers`, without a character left over, and far from the million steps at which tiktoken
# panics and prints Rust's lines. Of other patterns none of this is known.
PIECES = (QWEN_PIECES, QWEN_PIECES.replace(r"\p{N}|", r"\p{N}{1,3}|", 1))
LONGEST_TEXT, MOST_MERGING = 500_000, 10**8  # characters; squared bytes of all tokens


# ---- weights ---------------------------------------------------------------------------------------------------------


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


def read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file() or path.is_file() and path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is no file, or larger than {LARGEST_FILE >> 20} MiB")
    return path.read_bytes()


def read_json(path: Path) -> dict:
    try:
        read = json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path}: a JSON object is needed, not {type(read).__name__}")
    return read


def read_config(folder: Path) -> ModelConfig:
    """config.json as a ModelConfig; UserError names the first feature or value that model.py does not have."""
    path = folder / "config.json"
    c = read_json(path)
    if (family := c.get("model_type")) not in list(ARCHITECTURES):
        raise UserError(f"{path}: model_type {family!r:.60} is not supported; {' and '.join(ARCHITECTURES)} are")
    c["rope_theta"] = check_features(c, path)
    heads, width = (number(c, name, path) for name in ("num_attention_heads", "hidden_size"))
    if not isinstance(tied := c.get("tie_word_embeddings"), bool | None):
        raise UserError(f"{path}: tie_word_embeddings {tied!r:.60} is not supported; true or false is")
    qwen = family == "qwen3"
    left_out = {"num_key_value_heads": heads, "head_dim": 128 if qwen else width // heads}  # as transformers does
    left_out |= {"max_position_embeddings": 32768 if qwen else 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    numbers = {ours: number(c, theirs, path, left_out.get(theirs)) for ours, theirs in NUMBERS.items()}
    config = ModelConfig(**numbers, tie_embeddings=bool(tied), qk_norm=qwen)
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        sizes = f"{config.num_heads} heads of {config.head_dim} over {config.num_kv_heads} key/value heads"
        raise UserError(f"{path}: {sizes}: the first must be a multiple of the last, the width even")
    return config


def check_features(c: dict, path: Path) -> Any:
    """The rotary base that config.json gives, None without one; UserError for a feature that model.py lacks."""
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
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise UserError(f"{path}: rope type {kind!r:.60} is not supported; 'default' is")
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
    return rope["rope_theta"]


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
    names = {"embed": ["model.embed_tokens"], "norm": ["model.norm"]}
    if not config.tie_embeddings:
        names["head"] = ["lm_head"]
    block = "attention_norm input_layernorm, mlp_norm post_attention_layernorm, "
    block += "attention.qkv self_attn.q_proj self_attn.k_proj self_attn.v_proj, attention.out self_attn.o_proj, "
    block += "mlp.gate_up mlp.gate_proj mlp.up_proj, mlp.down mlp.down_proj"
    if config.qk_norm:
        block += ", attention.q_norm self_attn.q_norm, attention.k_norm self_attn.k_norm"
    for i in range(config.num_layers):
        for ours, *theirs in map(str.split, block.split(",")):
            names[f"blocks.{i}.{ours}"] = [f"model.layers.{i}.{name}" for name in theirs]
    return {f"{ours}.weight": [f"{name}.weight" for name in theirs] for ours, theirs in names.items()}


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


def taken_over(folder: Path) -> dict[str, bytes]:
    """What an export copies, read through links; UserError for what is not what its name says: it may be anything."""
    found = {name: read_bytes(folder / name) for name in TAKEN_OVER if (folder / name).exists()}
    for name, content in found.items():
        with reading(f"{folder / name} is not what its name says, and would be exported"):
            text = content.decode()
            lines = text.splitlines() if name == "merges.txt" else []
            odd = "\0" in text or name.endswith(".json") and not isinstance(json.loads(content), dict)
            if odd or any(line[:1] not in ("", "#") and line.count(" ") != 1 for line in lines):
                raise ValueError("no JSON object, list of merges, or text")
    return found


def save(model: Transformer, out: str | Path, source: str | Path | None = None) -> None:
    """Write a folder that transformers loads, weights bit for bit; tokenizer and further settings as in `source`.

    The weights come last: until they are there the folder is refused.
    """
    c, out = model.config, Path(out)
    copied = taken_over(Path(source)) if source else {}
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
    family = "qwen3" if c.qk_norm else "llama"
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        **{theirs: getattr(c, ours) for ours, theirs in NUMBERS.items()},
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.tie_embeddings,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }


# ---- tokenizer -------------------------------------------------------------------------------------------------------


class NoToken(UserError, ValueError):
    """A text that the tokenizer cannot write."""


class Tokenizer:
    """tiktoken on a published vocabulary, with what tiktoken leaves to its caller; its methods carry tiktoken's names.

    Differs from `tokenizers` on purpose in one thing: added tokens inside a text are plain text.
    """

    chat: "Chat | None" = None  # the folder's own template

    def __init__(self, encoding: tiktoken.Encoding, nfc: bool, ranks: dict[bytes, int], control: set[int]):
        self.encoding, self.nfc, self.n_vocab, self.control = encoding, nfc, encoding.n_vocab, control
        self.special_tokens_set, self.encode_single_token = encoding.special_tokens_set, encoding.encode_single_token
        self.missing = {b for b in range(256) if bytes([b]) not in ranks}
        self.bytes_of = {rank: piece for piece, rank in ranks.items()}
        self.bytes_of |= {encoding.encode_single_token(s): s.encode() for s in encoding.special_tokens_set}

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of plain text; NoToken for characters that the vocabulary cannot write."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken does
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        if len(text) > LONGEST_TEXT:  # or tiktoken panics, which prints lines of Rust's
            raise NoToken(f"the tokenizer fails on a text of {len(text)} characters, {text[:60]!r}")
        for character in text if self.missing else ():
            if set(character.encode()) & self.missing:
                raise NoToken(f"the tokenizer has no token for {character!r}, in {text[:60]!r}")
        return self.encoding.encode_ordinary(text)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token; of an id that the model has and the tokenizer lacks: U+FFFD."""
        return self.bytes_of.get(token, b"\xef\xbf\xbd")

    def decode(self, tokens: list[int]) -> str:
        """Text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.decode_single_token_bytes, tokens)).decode(errors="replace")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The byte-level BPE of tokenizer.json; UserError for another kind, or one that tiktoken would read differently."""
    path, settings = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
    with reading(f"{path}: no tokenizer that can be read"):
        config = read_json(settings) if settings.exists() else {}
        tokenizer = build_tokenizer(read_json(path), path, config)
        tokenizer.chat = chat_of(path.parent, config)
    return tokenizer


def build_tokenizer(t: dict, path: Path, config: dict | None = None) -> Tokenizer:
    model, added = t["model"], added_tokens(t, config or {}, path)
    for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} {model[name]!r:.60} is not supported")
    for part, kind in ((model, "BPE"), (t.get("decoder") or {}, "ByteLevel")):
        if part.get("type", kind) != kind:
            raise UserError(f"{path}: {part['type']!r:.60} is not supported; {kind} is")
    nfc, pieces = normalizes(t.get("normalizer"), path), pattern(t.get("pre_tokenizer"), path)
    byte_of = {c: bytes([b]) for b, c in byte_characters().items()}
    merged, ranks = merged_tokens(model, path), {}
    for token, rank in model["vocab"].items():
        if token in merged or token in byte_of:
            ranks[b"".join(byte_of[c] for c in token)] = rank
        elif token not in added:
            raise UserError(f"{path}: the token {token!r} is neither a byte nor a merge of two others")
    ids = {**model["vocab"], **added}.values()
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: two tokens have one id")
    encoding = tiktoken.Encoding(path.parent.name, pat_str=pieces, mergeable_ranks=ranks, special_tokens=added)
    return Tokenizer(encoding, nfc, ranks, {a["id"] for a in t.get("added_tokens") or [] if a.get("special")})


def added_tokens(t: dict, config: dict, path: Path) -> dict[str, int]:
    """The ids of the added tokens; UserError where `tokenizers` would give others, or tokenizer_config.json does."""
    vocab, added = t["model"]["vocab"], {}
    free = len(vocab)
    for token in t.get("added_tokens") or []:
        name = token["content"]
        if any(map(token.get, ("single_word", "lstrip", "rstrip"))) or token["id"] != vocab.get(name, free) or not name:
            raise UserError(f"{path}: the added token {name!r:.60} is not supported with these flags, or this id")
        free += name not in vocab
        added[name] = token["id"]
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        if added.get(token["content"]) != int(number):
            raise UserError(f"{path}: no {token['content']!r:.60} of id {number}, which tokenizer_config.json has")
    return added


def merged_tokens(model: dict, path: Path) -> set[str]:
    """The tokens that merges make; UserError where tiktoken, which merges by the result's id, could make others.

    It makes the same of every text where ids rise with the merges, and the last pair of each token's own bytes is
    listed: what merges to a token within a text does so alone. Without such a pair it is met as a whole piece only.
    """
    vocab, ids, last = model["vocab"], dict[str, int](), 0
    pairs = dict.fromkeys(tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
    for x, y in pairs:
        if vocab.get(x + y, -1) < last:
            raise UserError(f"{path}: the merge of {x + y!r:.60} does not follow the order of the token ids")
        ids[x + y] = last = vocab[x + y]
    if sum(len(token) ** 2 for token in ids) > MOST_MERGING:
        raise UserError(f"{path}: tokens as long as {max(map(len, ids))} bytes are not supported")
    for token in ids:
        pair = last_pair(token, ids)
        if pair not in pairs and (pair or not model.get("ignore_merges")):
            raise UserError(f"{path}: the bytes of the token {token!r:.60} do not merge to it by the merges listed")
    return set(ids)


def last_pair(token: str, ids: dict[str, int]) -> tuple[str, ...]:
    """The two tokens that the token's bytes are merged to before they are one; none where merging ends before."""
    parts = list(token)
    while len(parts) > 2:
        found = [ids.get(x + y, math.inf) for x, y in zip(parts, parts[1:])]
        i = found.index(min(found))
        if found[i] == math.inf:
            return ()
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


# ---- chat template ---------------------------------------------------------------------------------------------------

Chat = tuple[str, str, str, Callable[[str], str]]  # before the user's text, behind it, end of a turn, what it is cut to
SENTINEL, PADS = "the user's text, 8d1f", ("\v\t", "\t\v")


def chat_of(folder: Path, config: dict) -> Chat | None:
    """The prompt that the folder's template makes of one user message, cut where that stands; None without."""
    file = folder / "chat_template.jinja"
    template = read_bytes(file).decode() if file.exists() else config.get("chat_template")
    if isinstance(template, list):
        template = {named["name"]: named["template"] for named in template}["default"]
    if template is None:
        return None
    given = {key: value for key, value in config.items() if value and key.endswith("_token")}
    named = {key: value["content"] if isinstance(value, dict) else value for key, value in given.items()}
    told = {"messages": [{"role": "user", "content": SENTINEL.join(PADS)}], "tools": None, "documents": None}
    values = {**named, **told, "add_generation_prompt": True}
    rendered = Scorer("jinja2").ask(template, values, seconds=5.0)  # a process of its own
    text, why = rendered or ("", f"it takes more than 5 seconds or {MEMORY >> 30} GiB of memory")
    if why:
        raise UserError(f"{folder}: the chat template fails: {why[:300]}")
    before, *after = text.split(SENTINEL)
    if len(after) != 1:
        raise UserError(f"{folder}: the chat template shows the user's text {len(after)} times; once is needed")
    kept = before.endswith(PADS[0]), after[0].startswith(PADS[1])
    cuts: dict[tuple, Any] = {(0, 0): str.strip, (0, 1): str.lstrip, (1, 0): str.rstrip, (1, 1): str}
    return before.removesuffix(PADS[0]), after[0].removeprefix(PADS[1]), named.get("eos_token", ""), cuts[kept]


# ---- the parts of a byte-level BPE -----------------------------------------------------------------------------------


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
        split = (steps[0].get("pattern") or {}).get("Regex")
        whole = kinds == ["Split", "ByteLevel"] and not plain and not steps[0].get("invert")
        if whole and split in PIECES and steps[0].get("behavior") == "Isolated":
            return split
    what = f"the pre_tokenizer {' + '.join(kinds) or None} with this pattern and these settings is not supported"
    raise UserError(f"{path}: {what}; those of GPT-2, Llama 3, Qwen and SmolLM2 are")
