"""What every token of a sample earns, and three ways to show it: in colour, as figures, as a page.

Hue is the sign of A: blue raises a token's probability (+), orange lowers it (-). Depth is the multiplier A_hat / A:
the middle is plain GRPO's credit, deeper is more of it, paler is less.
"""

import html
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch

import tasks
from config import Config
from model import Transformer
from rlsd import evidence_weights, token_advantages
from rollout import Rollout, evidence, score, teacher_view
from support import errors

PAGE = Path(__file__).with_name("credit_page.html")  # a template
NAMES = ("P_S", "P_T", "Delta", "w", "A_hat")  # of a token's figures
INK = {1: (195, 153, 111, 69, 25), -1: (230, 223, 215, 208, 166), 0: (252, 250, 248, 245, 240)}  # of 256, by sign of A


class Token(NamedTuple):
    """A sampled token: its text, its probability in either view, Delta in nats, w unclipped, A_hat."""

    text: str
    p_student: float
    p_teacher: float
    delta: float
    weight: float
    a_hat: float


@dataclass
class Sample:
    reward: float
    advantage: float
    tokens: list[Token]
    text: str = ""

    @property
    def sign(self) -> int:
        return (self.advantage > 0) - (self.advantage < 0)


def credited(model: Transformer, batch: Rollout, config: Config) -> list[Sample]:
    """The credit of every token at the config's lambda and eps_w, by the functions that a training step calls.

    The model is student and teacher in one. Delta is that of the run's --evidence, the two probabilities are what the
    model gives.
    """
    lam, eps_w, mask = config.rlsd_lambda, config.rlsd_reweight_clip_range, batch.samples.mask
    with torch.no_grad():
        logps = score(model, batch, config, tasks.student_prompt)  # (N,T)
        shown = score(model, batch, config, lambda problem: teacher_view(problem, config))
        teacher_logps = evidence(model, batch, config, logps)
        weights, deltas = evidence_weights(batch.advantages, teacher_logps, logps, mask)
        a_hat = token_advantages(batch.advantages, teacher_logps, logps, mask, lam, eps_w)
    figures = torch.stack([logps.exp(), shown.exp(), deltas, weights, a_hat], dim=2).tolist()
    return [
        Sample(reward, advantage, [Token(token_text(t), *row) for t, row in zip(tokens, rows)], tasks.decode(tokens))
        for reward, advantage, tokens, rows in zip(
            batch.rewards.tolist(), batch.advantages.tolist(), batch.samples.completions(), figures
        )
    ]


def token_text(token: int) -> str:
    """The token's own bytes as text; a byte that is no UTF-8 by itself becomes \\xe2 or the like."""
    return tasks.FORMAT.tokenizer.decode_single_token_bytes(token).decode("utf-8", errors="backslashreplace")


def visible(text: str) -> str:
    return errors.visible(text.replace("\n", "↵"))


def quoted(text: str) -> str:
    return f"'{visible(text)}'"  # where a space has to be seen


def depth(sample: Sample, token: Token, config: Config) -> float:
    """Where the multiplier lies between its bounds: -1 at 1 - lambda eps_w (or 1 - lambda), 0 at 1, +1 at the upper."""
    reach = config.rlsd_lambda * config.rlsd_reweight_clip_range
    more = token.a_hat / sample.advantage - 1 if sample.advantage else 0.0
    room = reach if more > 0 else min(reach, config.rlsd_lambda)
    return max(-1.0, min(1.0, more / room)) if room else 0.0


def bounds(config: Config) -> tuple[float, float]:
    """The least and the greatest multiplier A_hat / A: w is above 0, so the least is never below 1 - lambda."""
    lam, eps_w = config.rlsd_lambda, config.rlsd_reweight_clip_range
    return 1 - lam * min(eps_w, 1), 1 + lam * eps_w


# ---- on a terminal ---------------------------------------------------------------------------------------------------


def headline(sample: Sample) -> str:
    verdict = {1.0: "right", 0.0: "wrong"}.get(sample.reward, "partly right")
    effect = ("no token moved", "every token raised (+)", "every token lowered (-)")[sample.sign]
    return f"{verdict}: reward {sample.reward:.4g}, A = {sample.advantage:+.4f}, {effect}"


def in_colour(sample: Sample, config: Config) -> str:
    """The completion, each token on its shade; a line break after each token that ends with one."""
    paint = lambda token: painted(visible(token.text), sample.sign, depth(sample, token, config))
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
    """The text, then a line a token: P_S, P_T, Delta, w, A_hat."""
    rows = [["", "token", *NAMES]]
    rows += [[str(t), quoted(token.text), *columns(token)] for t, token in enumerate(sample.tokens, start=1)]
    lines = (f"{t:>4} {text:<10} " + " ".join(f"{x:>9}" for x in figures) for t, text, *figures in rows)
    return "\n".join([f"completion: {visible(sample.text)}", *lines])


def columns(token: Token) -> list[str]:
    _, p_student, p_teacher, delta, weight, a_hat = token
    delta = round(delta, 4) + 0.0  # no -0.0000
    return [f"{p_student:.4g}", f"{p_teacher:.4g}", f"{delta:+.4f}", f"{weight:.4g}", f"{a_hat:+.4f}"]


# ---- as a page -------------------------------------------------------------------------------------------------------


def page(title: str, facts: list[str], samples: list[Sample], config: Config) -> str:
    """A self-contained page; whatever comes from a model or a user is escaped, and no script can run."""
    low, high = bounds(config)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts="\n".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        low=f"{low:.4g}",
        high=f"{high:.4g}",
        samples="\n".join(_column(sample, config) for sample in samples),
        tables="\n".join(_table(sample, config) for sample in samples),
    )


def _column(sample: Sample, config: Config) -> str:
    """One sample: RLSD's credit, the figures of the token farthest from plain GRPO's above it, plain GRPO's beneath."""
    depths = [depth(sample, token, config) for token in sample.tokens]
    farthest = max(range(len(depths)), key=lambda t: abs(depths[t]))
    rlsd, grpo = [], []
    for t, (token, deep) in enumerate(zip(sample.tokens, depths)):
        text, end = html.escape(visible(token.text)), "<br>" if token.text.endswith("\n") else ""
        far = " far" if abs(deep) >= 0.5 else ""
        far += " farthest" if t == farthest and deep else ""
        tip = f'<span class="tip">{_figures(token, config)}</span>'
        rlsd.append(f'<span class="t{far}" tabindex="0" style="--d:{deep:.3f}">{text}{tip}</span>{end}')
        grpo.append(f'<span class="t" style="--d:0">{text}</span>{end}')
    mark = {1: "raised", -1: "lowered", 0: "still"}[sample.sign]
    outlined = sample.tokens[farthest]
    figures = f"<b>{html.escape(visible(outlined.text))}</b> {_figures(outlined, config)}"
    figures = f'<p class="figures">{figures}</p>' if depths[farthest] else ""
    return (
        f'<section class="{mark}"><h2>{html.escape(headline(sample))}</h2>\n'
        f'<h3>RLSD</h3>{figures}<p class="tokens">{"".join(rlsd)}</p>\n'
        f"<h3>plain GRPO: {sample.advantage:+.4f} for every token</h3>"
        f'<p class="tokens">{"".join(grpo)}</p></section>'
    )


def _figures(token: Token, config: Config) -> str:
    rows, eps_w = dict(zip(NAMES, columns(token))), config.rlsd_reweight_clip_range
    clipped = min(max(token.weight, 1 - eps_w), 1 + eps_w)
    rows["w"] += f" → {clipped:.4g}" if clipped != token.weight else ""
    return " ".join(f"<span><i>{name}</i> {text}</span>" for name, text in rows.items())


def _table(sample: Sample, config: Config) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "token", *NAMES))
    rows = []
    for t, token in enumerate(sample.tokens, start=1):
        cells = "".join(f"<td>{text}</td>" for text in columns(token))
        far = ' class="far"' if abs(depth(sample, token, config)) >= 0.5 else ""
        rows.append(f"<tr{far}><td>{t}</td><td><code>{html.escape(quoted(token.text))}</code></td>{cells}</tr>")
    caption = html.escape(headline(sample))
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"
