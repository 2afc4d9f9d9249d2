"""The report's first page: what holds, what does not, why, and what to do; every figure is that of a claim below it."""

import re

LATER = "after 60 updates of GRPO"
TEN = f"""
1. **RLSD ends level with GRPO.** Final pass@1 minus GRPO's: {{RLSD ends above GRPO (addition)}} on addition,
   {{RLSD ends above GRPO (countdown)}} on countdown.
2. **It does not take half the updates.** GRPO's updates over its own: {{... in half the updates (addition)}} and
   {{... in half the updates (countdown)}}; the best cell of the grid, run again: {{RLSD pays somewhere: 1.5 times fewer
   updates}}.
3. **It does not leak, distillation may.** Completions that cite a reference never shown: {{RLSD does not leak
   (addition)}} of RLSD's, {{OPSD leaks (addition)}} of OPSD's.
4. **It costs one forward pass**: {{One extra forward pass}} times GRPO's seconds an update.
5. **Its weight falls on tokens that decide**: {{Credit sits on the deciding tokens (wrong samples)}} of it on the first
   mistake, one token of thirty. As much falls on the first token, where the teacher would rather cite.
6. **There is little to win where an answer has one derivation.** On addition even perfect evidence is worth
   {{Perfect evidence is worth 1.2 times the samples (addition, before RL)}} times GRPO's samples before RL and
   {{Perfect evidence is worth 1.2 times the samples (addition, {LATER})}} after 60 updates. The paper's weights
   get {{The paper's weights are worth more samples (addition, before RL)}} and
   {{The paper's weights are worth more samples (addition, {LATER})}} of it, and cannot get more than 1.49
   ([the bound](../docs/derivation.md)).
7. **Wide weights harm where an answer is right in several ways, by bias and not by noise.** After 60 updates their mean
   gradient has a cosine of {{Wide weights point where GRPO does (countdown, {LATER})}} with GRPO's on countdown,
   of {{Wide weights point where GRPO does (addition, {LATER})}} on addition.
8. **Most of that bias is what any answer makes the teacher write.** Evidence beside a wrong answer (contrastive) has
   {{Contrastive at eps_w 4 points where GRPO does (countdown, {LATER})}}.
9. **Nothing proposed since is worth 1.2 times the samples for certain, before RL and after it.** Nearest is contrastive
   evidence at eps_w 4 on addition:
   {{Contrastive at eps_w 4 is worth 1.2 times the samples (addition, before RL)}}, then
   {{Contrastive at eps_w 4 is worth 1.2 times the samples (addition, {LATER})}}.
   Trained so, GRPO's updates over its own are
   {{... in half the updates (contrastive at eps_w 4, addition)}}.
10. **In practice.** One right derivation: the paper's settings do no harm, GRPO (lambda 0) is cheaper. Several right
    answers: lambda 0, or contrastive evidence, and no eps_w above 0.2. A teacher that knows what the student does not:
    distillation (OPSD, or OPD with a larger teacher), with an eye on leakage; a magnitude cannot say what to write.
"""


def first_page(claims: list[list[str]]) -> str:
    """Ten lines in Markdown, of the whole study alone: "" where a claim of theirs was not measured."""
    figures = {claim: figure for claim, _, figure, *_ in claims if figure != "-"}
    try:
        return "## In ten lines\n" + re.sub(r"\{([^}]*)\}", lambda m: figures[" ".join(m[1].split())], TEN)
    except KeyError:
        return ""
