"""The report's first page: what holds, what does not, why, and what to do; its figures are those of the claims."""

import re
import textwrap

from study.headroom_report import BOUND

LATER = "after 60 updates of GRPO"
TEN = f"""
1. **RLSD ends level with GRPO.** Final pass@1 minus GRPO's: {{RLSD ends above GRPO (addition)}} on addition,
   {{RLSD ends above GRPO (countdown)}} on countdown.
2. **It does not take half the updates.** GRPO's updates over its own: {{... in half the updates (addition)}} and
   {{... in half the updates (countdown)}}; the best cell of the grid, run again: {{RLSD pays somewhere: 1.5 times fewer
   updates}}.
3. **It does not leak; OPSD does on addition.** Completions that cite a reference never shown: {{RLSD does not leak
   (addition)}} of RLSD's, {{OPSD leaks (addition)}} of OPSD's.
4. **It costs one forward pass**: {{One extra forward pass}} times GRPO's seconds an update.
5. **Part of its weight falls on tokens that decide**: {{Credit sits on the deciding tokens (wrong samples)}} of it on
   the first mistake, one token of thirty; as much on the first token, where the teacher would rather cite. On mistakes
   of other models that people marked, the evidence of SmolLM2-135M is level with chance ([localise.md](localise.md)).
6. **Where an answer has one derivation, knowing it gives little.** An oracle that marks the deciding tokens, and no
   others, is worth {{An oracle's marks are worth 1.2 times the samples (addition, before RL)}} times GRPO's samples on
   addition before RL, {{An oracle's marks are worth 1.2 times the samples (addition, {LATER})}} times after 60 updates.
   The paper's weights are worth {{The paper's weights are worth more samples (addition, before RL)}} and
   {{The paper's weights are worth more samples (addition, {LATER})}} times. For weights in their range that are blind
   to the verdict, which these are not, [a bound](../docs/derivation.md) is {BOUND:.2f}.
7. **Wide weights (eps_w 4) harm most where an answer is right in several ways, and there by their direction.** After 60
   updates their mean gradient has a cosine of {{Wide weights point where GRPO does (countdown, {LATER})}} with GRPO's
   on countdown, {{Wide weights point where GRPO does (addition, {LATER})}} on addition; over all samples of a run they
   are worth {{Wide weights are worth more over a run's samples (countdown, {LATER})}} times GRPO's on countdown.
8. **About half of that turn goes with contrastive evidence**, beside a wrong answer: a cosine of
   {{Contrastive at eps_w 4 points where GRPO does (countdown, {LATER})}}. Whether as style is open.
9. **No other reading of the evidence is worth 1.2 times the samples for certain, before RL and after it.** Nearest is
   contrastive evidence at eps_w 4 on addition:
   {{Contrastive at eps_w 4 is worth 1.2 times the samples (addition, before RL)}}, then
   {{Contrastive at eps_w 4 is worth 1.2 times the samples (addition, {LATER})}}. Trained so, its lead over GRPO at the
   same rate, in pass@1 over the whole run, is {{RLSD leads with contrastive evidence at eps_w 4 (addition)}}.
10. **In practice.** Leave lambda at 0 unless there is one right derivation; there, at the paper's settings, nothing
    was gained or lost at 256 samples. Keep eps_w at 0.2. With a larger teacher at hand take OPD: {{OPD takes 1.5 times
    fewer updates than GRPO (addition)}} times fewer updates than GRPO, and no leak. OPSD carries over what only the
    teacher knows ([language.md](language.md)) but may leak; a magnitude cannot say what to write instead.
"""
WORTH = "*Worth*: how many times as many samples GRPO needs for a step as good. What is behind each figure: below."


def first_page(claims: list[list[str]]) -> str:
    """Ten lines in Markdown, of the whole study alone: "" where a claim of theirs was not measured."""
    figures = {claim: figure for claim, _, figure, *_ in claims if figure != "-"}
    try:
        text = re.sub(r"\{([^}]*)\}", lambda m: figures[" ".join(m[1].split())], TEN)
    except KeyError:
        return ""
    lines = (" ".join(line.split()) for line in re.split(r"\n(?=\d+\. )", text.strip()))
    filled = "\n".join(textwrap.fill(line, 118, subsequent_indent="    ") for line in lines)
    return f"## In ten lines\n\n{filled}\n\n{WORTH}"
