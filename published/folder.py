"""The small files of a published folder: read whole, within bounds; and what an export takes over from them."""

import json
from pathlib import Path

from support.errors import UserError, reading

# Beside config.json and the weights: what an export takes over from the folder that the weights came from.
TAKEN_OVER = "tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json merges.txt".split()
TAKEN_OVER += ["generation_config.json", "chat_template.jinja"]
LARGEST_FILE = 2**27  # of those that are read whole: tokenizers and settings


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
