"""The byte-level BPE of a published tokenizer.json, on tiktoken: the same tokens as `tokenizers` makes, or refused."""

import math
import unicodedata
from pathlib import Path

import tiktoken

from published.chat_template import template_of
from published.folder import read_json
from support.errors import UserError, reading

GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# the same where every digit is a piece of its own, and ends the piece before it (SmolLM2)
DIGIT_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
QWEN_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
QWEN_PIECES += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
# Read by tiktoken as by `tokenizers`, without a character left over, and far from the million steps at which tiktoken
# panics and prints Rust's lines. Of other patterns none of this is known.
PIECES = (QWEN_PIECES, QWEN_PIECES.replace(r"\p{N}|", r"\p{N}{1,3}|", 1))
LONGEST_TEXT, MOST_MERGING = 500_000, 10**8  # characters; squared bytes of all tokens


class NoToken(UserError, ValueError):
    """A text that the tokenizer cannot write."""


class Tokenizer:
    """tiktoken on a published vocabulary, with what tiktoken leaves to its caller; its methods carry tiktoken's names.

    Differs from `tokenizers` on purpose in one thing: added tokens inside a text are plain text.
    """

    template: str | None = None  # of the folder's chat; names: of its special tokens, as the template calls them
    ends: tuple[int, ...] = ()  # what config.json and generation_config.json call eos
    begins = False  # whether a text of its own begins with bos_token

    def __init__(self, encoding: tiktoken.Encoding, nfc: bool, ranks: dict[bytes, int], control: set[int]):
        self.encoding, self.nfc, self.n_vocab, self.control = encoding, nfc, encoding.n_vocab, control
        self.names: dict[str, str] = {}
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
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}")
    with reading(f"{path}: no tokenizer that can be read"):
        config = read_json(settings) if settings.exists() else {}
        tokenizer = build_tokenizer(read_json(path), path, config)
        given = {key: value for key, value in config.items() if key.endswith("_token")}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in given.items()}
        tokenizer.names = {key: name for key, name in names.items() if name and isinstance(name, str)}
        tokenizer.template, tokenizer.begins = template_of(path.parent, config), config.get("add_bos_token") is True
        tokenizer.ends = ends_of(path.parent)
    return tokenizer


def ends_of(folder: Path) -> tuple[int, ...]:
    """The token ids that config.json and generation_config.json call eos; UserError for what is none."""
    found: list[int] = []
    for path in (folder / "config.json", folder / "generation_config.json"):
        said = read_json(path).get("eos_token_id") if path.exists() else None
        ids = said if isinstance(said, list) else [] if said is None else [said]
        if odd := [x for x in ids if type(x) is not int]:
            raise UserError(f"{path}: eos_token_id {odd[0]!r:.60} is no token id")
        found += ids
    return tuple(dict.fromkeys(found))


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
