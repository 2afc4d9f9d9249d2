"""Mistakes to plant in the code: those of mistakes.py and pieces.py, which show.py makes one after the other."""

import re
from collections.abc import Iterator


def entries(text: str) -> Iterator[tuple[list[str], str, str]]:
    """Of each entry its words, line by line; the code behind `-`; and what stands in its place, behind `+`.

    Without a `+` the lines go, and their ends with them.
    """
    for entry in re.split(r"\n(?=\S)", text.strip()):
        lines = entry.splitlines()
        old, new = ([line[6:] for line in lines if line.startswith(f"    {sign} ")] for sign in "-+")
        words = [line.strip() for line in lines if not line.startswith(("    - ", "    + "))]
        yield words, "\n".join(old) + ("" if new else "\n"), "\n".join(new)
