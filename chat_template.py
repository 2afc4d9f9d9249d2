"""Renders a chat template as transformers does: JSON [template, values] in, JSON text out (pretrained.chat_of).

A process of its own, so that what a template does costs its own time and memory alone.
"""

import contextlib
import json
import sys
from datetime import datetime


def fail(message):
    raise ValueError(message)


def render(template: str, values: dict) -> str:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        for limit, most in ((resource.RLIMIT_CPU, 5), (resource.RLIMIT_AS, 2**30), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(limit, (most, most))
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    env = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    env.globals |= {"raise_exception": fail, "strftime_now": lambda form: datetime.now().strftime(form)}
    text = env.from_string(template).render(values)
    return text if len(text) < 10**6 else fail(f"{len(text)} characters are too many")


if __name__ == "__main__":
    try:
        print(json.dumps(render(*json.load(sys.stdin))))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
