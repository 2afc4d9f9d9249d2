"""A sample's credit on a terminal: its tokens in colour, or a line of figures each.

Hue is the sign of A: blue raises a token's probability (+), orange lowers it (-). Depth is the multiplier A_hat / A:
the middle is plain GRPO's credit, deeper is more of it, paler is less. Beneath it the same tokens on the size of the
push, A_hat (1 - P_S), from palest, none, to deepest, the greatest that a token of the sample can get.
"""

import os
import sys
from collections.abc import Callable

from config import Config
from credit.tokens import NAMES, Sample, bounds, depth, push_depth, quoted, visible

INK = {1: (195, 153, 111, 69, 25), -1: (230, 223, 215, 208, 166), 0: (252, 250, 248, 245, 240)}  # of 256, by sign of A


def report(lines: list[str], samples: list[Sample], config: Config) -> str:
    """The lines, then each sample in colour or, where the output takes none, as figures."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    parts = [visible(line) for line in lines] + [colour_key(config)] * colour
    for sample in samples:
        parts += ["", sample.headline()]
        parts += both_shades(sample, config) if colour else [as_figures(sample)]
    return "\n".join(parts)


def both_shades(sample: Sample, config: Config) -> list[str]:
    return [in_colour(sample, config), "its push, A_hat (1 - P_S):", in_colour(sample, config, push_depth)]


def in_colour(sample: Sample, config: Config, shade: Callable = depth) -> str:
    """The completion, each token on its shade; a line break after each token that ends with one."""
    paint = lambda token: painted(visible(token.text), sample.sign, shade(sample, token, config))
    return "".join(paint(token) + "\n" * token.text.endswith("\n") for token in sample.tokens)


def painted(text: str, sign: int, deep: float) -> str:
    level = round(2 + 2 * deep)  # 0 to 4
    return f"\x1b[48;5;{INK[sign][level]};38;5;{231 if level == 4 else 16}m{text}\x1b[0m"


def colour_key(config: Config) -> str:
    low, high = bounds(config)
    scale = {-1: f" x{low:.4g} ", -0.5: "   ", 0: " x1: plain GRPO ", 0.5: "   ", 1: f" x{high:.4g} "}
    bars = ("".join(painted(text, sign, deep) for deep, text in scale.items()) for sign in (1, -1))
    return "A_hat / A: raised (+) {} lowered (-) {}".format(*bars)


def as_figures(sample: Sample) -> str:
    """The text, then a line a token: P_S, P_T, Delta, w, A_hat, push."""
    rows = [["", "token", *NAMES]]
    rows += [[str(t), quoted(token.text), *token.columns()] for t, token in enumerate(sample.tokens, start=1)]
    lines = (f"{t:>4} {text:<10} " + " ".join(f"{x:>9}" for x in figures) for t, text, *figures in rows)
    return "\n".join([f"completion: {visible(sample.text)}", *lines])
