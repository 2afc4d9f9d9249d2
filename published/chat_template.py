"""A chat template: read from a published folder, given a run's own words, and rendered by jinja2 in its own process."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from published.folder import read_bytes
from support.child import MEMORY, Limited
from support.errors import UserError

SENTINEL, PADS = "the user's text, 8d1f", ("\v\t", "\t\v")
FOLLOWS = "{#- the model's own chat template follows #}\n"  # behind what is put before it
THINKING = "{%- if enable_thinking is not defined %}{% set enable_thinking = THIS %}{% endif %}\n"
SYSTEM = """\
{%- if messages[0].role != 'system' %}
{%- set messages = [{'role': 'system', 'content': THIS}] + messages %}
{%- endif %}
"""
INSTRUCTION = """\
{%- set asked = namespace(turns=[]) %}
{%- for turn in messages %}
{%- if turn.role == 'user' %}
{%- set more = THIS if turn.content is string else [{'type': 'text', 'text': THIS}] %}
{%- set asked.turns = asked.turns + [{'role': 'user', 'content': turn.content + more}] %}
{%- else %}
{%- set asked.turns = asked.turns + [turn] %}
{%- endif %}
{%- endfor %}
{%- set messages = asked.turns %}
"""
TODAY = "{%- macro strftime_now(form) %}{{ THIS[form] }}{%- endmacro %}\n"


def template_of(folder: Path, config: dict) -> str | None:
    """The folder's template; None without one."""
    file = folder / "chat_template.jinja"
    template = read_bytes(file).decode() if file.exists() else config.get("chat_template")
    if isinstance(template, list):
        template = {named["name"]: named["template"] for named in template}["default"]
    if not isinstance(template, str | None):
        raise UserError(f"{folder}: the chat template {template!r:.60} is no text")
    return template


def worded(template: str, instruction: str, system: str, thinking: str, today: dict[str, str]) -> str:
    """The template with a run's own words: what the run renders, and an export has, so that both ask alike.

    today: what strftime_now gives to each form that the template asks for; as far as it is known.
    """
    words = [TODAY.replace("THIS", literal(today))] if today else []
    words += [THINKING.replace("THIS", literal(thinking == "on"))] if thinking != "default" else []
    words += [SYSTEM.replace("THIS", literal(system))] if system else []
    words += [INSTRUCTION.replace("THIS", literal(f"\n\n{instruction}"))] if instruction else []
    return "".join([*words, FOLLOWS, template] if words else [template])


def literal(value: Any) -> str:
    """A value as jinja2 writes it, which reads JSON's escapes as Python's: characters stay as they are."""
    return json.dumps(value, ensure_ascii=False)


def around(template: str, names: dict, day: date) -> tuple[str, str, Callable[[str], str], dict[str, str]]:
    """What the template puts before one user message and behind it, what it cuts off that, and what it asks of a day.

    ValueError for a template that fails, takes too long, or does not show the message once.
    """
    told = {"messages": [{"role": "user", "content": SENTINEL.join(PADS)}], "tools": None, "documents": None}
    process = Limited("jinja2", "published.chat_template", "renderer")
    request = template, {**names, **told, "add_generation_prompt": True}, day.isoformat()
    endless: tuple[str, str, dict] = "", f"it takes more than 5 seconds or {MEMORY >> 30} GiB of memory", {}
    text, why, today = process.ask(*request, seconds=5.0) or endless
    if why:
        raise ValueError(f"the chat template fails: {why[:300]}")
    before, *after = text.split(SENTINEL)
    if len(after) != 1:
        raise ValueError(f"the chat template shows the user's text {len(after)} times; once is needed")
    kept = before.endswith(PADS[0]), after[0].startswith(PADS[1])
    cuts: dict[tuple, Any] = {(0, 0): str.strip, (0, 1): str.lstrip, (1, 0): str.rstrip, (1, 1): str}
    return before.removesuffix(PADS[0]), after[0].removeprefix(PADS[1]), cuts[kept], today


def renderer() -> Callable:
    """In the child: render(template, values, day) -> the text that transformers makes, or why not; forms of the day."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    def fail(message):
        raise ValueError(message)

    env = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})

    def render(template: str, values: dict, day: str) -> tuple[str, str, dict[str, str]]:
        today: dict[str, str] = {}
        now = lambda form: today.setdefault(form, date.fromisoformat(day).strftime(form))
        env.globals |= {"raise_exception": fail, "strftime_now": now}
        try:
            text = env.from_string(template).render(values)
            return (text, "", today) if len(text) < 10**6 else fail(f"{len(text)} characters are too many")
        except Exception as error:
            return "", f"{type(error).__name__}: {' '.join(str(error).split())}", {}

    return render
