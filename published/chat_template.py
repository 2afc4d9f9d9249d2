"""What a published folder's own chat template puts around a user's message: by jinja2, in a process of its own."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from published.folder import read_bytes
from support.child import MEMORY, Limited
from support.errors import UserError

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
    process = Limited("jinja2", "published.chat_template", "renderer")
    rendered = process.ask(template, values, seconds=5.0)
    text, why = rendered or ("", f"it takes more than 5 seconds or {MEMORY >> 30} GiB of memory")
    if why:
        raise UserError(f"{folder}: the chat template fails: {why[:300]}")
    before, *after = text.split(SENTINEL)
    if len(after) != 1:
        raise UserError(f"{folder}: the chat template shows the user's text {len(after)} times; once is needed")
    kept = before.endswith(PADS[0]), after[0].startswith(PADS[1])
    cuts: dict[tuple, Any] = {(0, 0): str.strip, (0, 1): str.lstrip, (1, 0): str.rstrip, (1, 1): str}
    return before.removesuffix(PADS[0]), after[0].removeprefix(PADS[1]), named.get("eos_token", ""), cuts[kept]


def renderer() -> Callable:
    """In the child: render(template, values) -> the text that transformers makes, "", or none and why."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    def fail(message):
        raise ValueError(message)

    env = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    env.globals |= {"raise_exception": fail, "strftime_now": lambda form: datetime.now().strftime(form)}

    def render(template: str, values: dict) -> tuple[str, str]:
        try:
            text = env.from_string(template).render(values)
            return (text, "") if len(text) < 10**6 else fail(f"{len(text)} characters are too many")
        except Exception as error:
            return "", f"{type(error).__name__}: {' '.join(str(error).split())}"

    return render
