"""How a published model is asked: its own chat template with a run's words in it; what an export takes of that."""

import json
from datetime import date
from pathlib import Path

from config import INSTRUCTION, Config
from published.chat_template import FOLLOWS, around, worded
from published.folder import read_json
from published.tokenizer import Tokenizer
from tasks import Format

ASK = f"\n\n{INSTRUCTION}"
TELL = "\n\nReference, for your eyes alone: {privileged}"
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """\
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
PLAIN = "{%- for message in messages %}{{ message.content + '\\n\\n' }}{% endfor %}"
FAMILIES = {  # of models without a template, told by a special token: what it is called, the template, end of a turn
    "<|im_start|>": ("ChatML", CHATML, "<|im_end|>"),
    "<|start_header_id|>": ("the format of Llama 3", LLAMA3, "<|eot_id|>"),
}


class Chat(Format):
    """The format of a published model. template: what makes the same prompts anywhere; note: what was assumed."""

    template = note = ""


def chat(tokenizer: Tokenizer, config: Config | None = None) -> Chat:
    """The chat format of a published tokenizer, with a run's words: its folder's template, or one that fits its tokens.

    Without the words that an export has put before the template. ValueError for a template that fails, and for a
    tokenizer of which nobody knows what ends a turn.
    """
    config = config or Config()
    published = tokenizer.template and tokenizer.template.rpartition(FOLLOWS)[2]
    day = date.fromisoformat(config.date) if config.date else date.today()
    return rendered(tokenizer, published, (config.instruction, config.system, config.thinking), day)


def as_served(tokenizer: Tokenizer) -> Chat:
    """The chat format that a server makes of the folder: its template as it stands there. ValueError as `chat`."""
    return rendered(tokenizer, tokenizer.template, ("", "", "default"), date.today())


def rendered(tokenizer: Tokenizer, template: str | None, words: tuple[str, str, str], day: date) -> Chat:
    """words: instruction, system prompt, thinking switch."""
    end, note = tokenizer.names.get("eos_token", ""), ""
    ends = [end for _, _, end in FAMILIES.values() if end in (template or "") and end in tokenizer.special_tokens_set]
    end = (*ends, end)[0]  # of a base model that has a template, eos_token ends a text and not a turn
    if template is None:
        special = [family for token, family in FAMILIES.items() if token in tokenizer.special_tokens_set]
        plain = "the plain text of the conversation", "{{ bos_token }}" * tokenizer.begins + PLAIN, end
        called, template, end = (*special, plain)[0]
        note = f"no chat template there: {called} is used"
    *_, today = around(template, tokenizer.names, day)
    template = worded(template, *words, today)
    template.encode()  # or it could not be exported
    before, after, cut, _ = around(template, tokenizer.names, day)
    if end not in tokenizer.special_tokens_set:
        known = f"the chat formats known here ({', '.join(FAMILIES)})"
        raise ValueError(f"the tokenizer has none of {known}, nor a template and eos_token")

    def view(question: str, privileged: str | None) -> list[str]:
        return [cut(question + (TELL.format(privileged=privileged) if privileged else ""))]

    made = Chat(tokenizer, before, after, end, view, tokenizer.ends)
    made.template, made.note = template, note
    return made


def served(format: Format, folder: Path) -> dict[str, bytes]:
    """The files of an export by which transformers asks as training did, and stops where it stopped."""
    assert isinstance(format, Chat)
    read = lambda name: read_json(folder / name) if (folder / name).exists() else {}
    end = format.tokenizer.decode_single_token_bytes(format.end).decode()
    settings = read("tokenizer_config.json") or {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    files = {"tokenizer_config.json": {**settings, "chat_template": format.template}}
    files["generation_config.json"] = {**read("generation_config.json"), "eos_token_id": [*dict.fromkeys(format.ends)]}
    written = {name: (json.dumps(x, indent=2, ensure_ascii=False) + "\n").encode() for name, x in files.items()}
    return written | {"chat_template.jinja": format.template.encode()}
