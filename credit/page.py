"""The credit of samples as a page of one file: tokens on their shades, figures where one points, tables below."""

import html
from pathlib import Path
from string import Template

from config import Config
from credit.tokens import NAMES, Sample, Token, bounds, depth, push_depth, quoted, visible

TEMPLATE = Path(__file__).with_name("page.html")


def page(title: str, facts: list[str], samples: list[Sample], config: Config) -> str:
    """A self-contained page; whatever comes from a model or a user is escaped, and no script can run."""
    low, high = bounds(config)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts="\n".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        low=f"{low:.4g}",
        high=f"{high:.4g}",
        samples="\n".join(_column(sample, config) for sample in samples),
        tables="\n".join(_table(sample, config) for sample in samples),
    )


def _column(sample: Sample, config: Config) -> str:
    """One sample, as RLSD's credit, plain GRPO's and the push; above, the token farthest from plain GRPO's credit."""
    depths = [depth(sample, token, config) for token in sample.tokens]
    farthest = max(range(len(depths)), key=lambda t: abs(depths[t]))
    rlsd, grpo, push = [], [], []
    for t, (token, deep) in enumerate(zip(sample.tokens, depths)):
        text, end = html.escape(visible(token.text)), "<br>" if token.text.endswith("\n") else ""
        far = " far" if abs(deep) >= 0.5 else ""
        far += " farthest" if t == farthest and deep else ""
        tip = f'<span class="tip">{_figures(token, config)}</span>'
        rlsd.append(f'<span class="t{far}" tabindex="0" style="--d:{deep:.3f}">{text}{tip}</span>{end}')
        grpo.append(f'<span class="t" style="--d:0">{text}</span>{end}')
        push.append(f'<span class="t" style="--d:{push_depth(sample, token, config):.3f}">{text}</span>{end}')
    mark = {1: "raised", -1: "lowered", 0: "still"}[sample.sign]
    outlined = sample.tokens[farthest]
    figures = f"<b>{html.escape(visible(outlined.text))}</b> {_figures(outlined, config)}"
    figures = f'<p class="figures">{figures}</p>' if depths[farthest] else ""
    return (
        f'<section class="{mark}"><h2>{html.escape(sample.headline())}</h2>\n'
        f'<h3>RLSD</h3>{figures}<p class="tokens">{"".join(rlsd)}</p>\n'
        f"<h3>plain GRPO: {sample.advantage:+.4f} for every token</h3>"
        f'<p class="tokens">{"".join(grpo)}</p>\n'
        f'<h3>RLSD\'s push: A_hat (1 &minus; P_S)</h3><p class="tokens">{"".join(push)}</p></section>'
    )


def _figures(token: Token, config: Config) -> str:
    rows, eps_w = dict(zip(NAMES, token.columns())), config.rlsd_reweight_clip_range
    clipped = min(max(token.weight, 1 - eps_w), 1 + eps_w)
    rows["w"] += f" → {clipped:.4g}" if clipped != token.weight else ""
    return " ".join(f"<span><i>{name}</i> {text}</span>" for name, text in rows.items())


def _table(sample: Sample, config: Config) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "token", *NAMES))
    rows = []
    for t, token in enumerate(sample.tokens, start=1):
        cells = "".join(f"<td>{text}</td>" for text in token.columns())
        far = ' class="far"' if abs(depth(sample, token, config)) >= 0.5 else ""
        rows.append(f"<tr{far}><td>{t}</td><td><code>{html.escape(quoted(token.text))}</code></td>{cells}</tr>")
    caption = html.escape(sample.headline())
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"
