"""Bias or noise: what a weighting does to the mean gradient and to the noise around it. One policy, many batches.

    python -m study.split [options of train.py] [--batches 64] [--policy RUN]

Every pair of different batches has noises of its own, so products of their gradients have the products of the means as
expectation. Of a weighting w and GRPO G, with gradients g of a batch and means mu, this gives without bias

    gain    mu_w.mu_G / sqrt(E|g_w|^2 E|g_G|^2)        signal    |mu_w|^2 / E|g_w|^2

and of these: cosine of the means, gain_w / sqrt(signal_w signal_G), the *bias*; signal_w / signal_G, the *noise*;
samples worth, (gain_w / gain_G)^2, which is the cosine squared times the noise's ratio.
"""

import dataclasses
import sys
from collections import defaultdict
from functools import partial

import torch
from torch import Tensor

import tasks
import train
from baselines import readings
from baselines.losses import opsd_loss
from baselines.methods import logits, with_hints
from config import Config
from harness.console import interruptible
from harness.evaluation import evaluate, evaluate_teacher
from harness.memory import explained
from harness.problems import load_source
from model import Transformer
from rlsd import token_advantages
from rollout import Rollout, score
from study import variants
from study.oracles import deciding_tokens, free_wording, marked
from study.probe import finish, parse, policy_of
from support.errors import UserError
from support.program import program
from verifiers import Verifier, final_answer

PAPER, WIDE = (0.5, 0.2), (1.0, 4.0)  # lambda, eps_w
GRPO, WIDE_WEIGHTS = "GRPO", "RLSD, eps_w 4"
KINDS = ("reference", "other", "wrong")  # samples: right by the reference's own answer, right by another one, wrong
PARTLY = {  # wide weights on samples of these kinds, GRPO's on all others
    "eps_w 4 on right samples alone": ("reference", "other"),
    "eps_w 4 on wrong samples alone": ("wrong",),
    "eps_w 4, not on other answers": ("reference", "wrong"),
}
BESIDE = {"GRPO + without style": 1.0, "GRPO + 0.3 without style": 0.3}  # weight of that loss beside GRPO's
BLOCK = 8  # batches that are one large batch
Gradients = dict[tuple[str, str], Tensor]  # flat, by (weighting, kind of samples)


# ---- one batch -------------------------------------------------------------------------------------------------------


def kinds_of(batch: Rollout) -> list[str]:
    """Of each sample."""
    finals = [final_answer(tasks.decode(completion)) for completion in batch.samples.completions()]
    rows = zip(batch.rewards.tolist(), finals, batch.problems)
    plain = lambda text: (text or "").replace(" ", "").partition("=")[0]
    kind = lambda final, problem: "reference" if plain(final) == plain(problem.answer) else "other"
    return [kind(final, problem) if reward == 1 else "wrong" for reward, final, problem in rows]


def own_answers(batch: Rollout, config: Config) -> Rollout:
    """Right samples with their own verified answer as privileged text, in place of the reference. H2SD (2607.18955)."""
    finals = [final_answer(tasks.decode(completion)) for completion in batch.samples.completions()]
    fits = lambda final: final and len(tasks.encode(final)) <= config.max_new_tokens
    rewards = batch.rewards.tolist()
    hints = [final if reward == 1 and fits(final) else None for final, reward in zip(finals, rewards)]
    return with_hints(dataclasses.replace(batch, hints=hints))


def oracle_credits(batch: Rollout) -> dict[str, Tensor]:
    """A_hat (N,T) of somebody who knows an addition's right derivation."""
    A, mask, completions = batch.advantages[:, None], batch.samples.mask, batch.samples.completions()
    places = [deciding_tokens(c, problem) for c, problem in zip(completions, batch.problems)]
    decides = marked(completions, places, mask)
    free = marked(completions, list(map(free_wording, completions)), mask)
    reach = PAPER[0] * PAPER[1]
    found = {
        "oracle, 1 or 0": A * decides,
        "oracle, 0 on free wording": A * (mask & ~free),
        "oracle in [0.9, 1.1]": A * mask * torch.where(decides, 1 + reach, 1 - reach),
    }
    if not free.any():
        del found["oracle, 0 on free wording"]
    return found


def credits(model: Transformer, batch: Rollout, config: Config, before: Transformer | None) -> dict[str, Tensor]:
    """A_hat (N,T) of every weighting, of samples that have an advantage; before: the model that RL began with."""
    A, mask, view = batch.advantages, batch.samples.mask, partial(tasks.teacher_view, privileged=config.privileged)
    S, T = score(model, batch, config, tasks.student_prompt), score(model, batch, config, view)
    misled = score(model, with_hints(batch), config, view)
    has_wrong = torch.tensor([hint is not None for hint in batch.hints])
    first = torch.arange(mask.shape[1]) == 0
    wide = {  # readings of the evidence, at the wide range
        WIDE_WEIGHTS: T,
        "contrastive": readings.contrastive(S, T, misled, has_wrong),
        "centred": variants.centred(S, T, mask),
        "first token left out": torch.where(first, S, T),
        "inverse on right": variants.inverse_on_right(S, T, A),
    }
    if config.task != "addition":
        wide["own answer"] = score(model, own_answers(batch, config), config, view)
    if before is not None:
        wide["teacher from before RL"] = score(before, batch, config, view)
    settings = {
        GRPO: (S, 0.0, 0.2),
        "RLSD (paper)": (T, *PAPER),
        "RLSD, eps_w 0.9": (T, 1.0, 0.9),
        **{name: (evidence, *WIDE) for name, evidence in wide.items()},
        "RLSD, eps_w 20": (T, 1.0, 20.0),
        "agreement": (readings.agreement(S, T, A), 1.0, 1.0),
    }
    found = {name: token_advantages(A, evidence, S, mask, *how) for name, (evidence, *how) in settings.items()}
    found["bounded credit"] = variants.bounded_credit(A, T, S, mask)
    found["residual credit"] = variants.residual_credit(A, T, torch.where(has_wrong[:, None], misled, S), mask)
    return found | (oracle_credits(batch) if config.task == "addition" else {})


def concentration(a_hat: Tensor, student_logps: Tensor, mask: Tensor) -> float:
    """Share of tokens that carry the push |A_hat| (1 - P_S) on their own logits: (sum)^2 / (count x sum of squares)."""
    push = (a_hat.abs() * (1 - student_logps.exp()))[mask]
    return (push.sum().square() / (len(push) * push.square().sum()).clamp(min=1e-30)).item()


def gradients(
    model: Transformer, batch: Rollout, config: Config, before: Transformer | None = None
) -> tuple[Gradients, dict[str, float]]:
    """Gradient of every weighting, apart for each kind of samples, and its concentration; of distillation on all."""
    parameters, tokens = list(model.parameters()), batch.samples.mask.sum()
    flat = lambda loss: torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
    found, focus = {}, {}
    rows = batch.advantages.nonzero().squeeze(1)
    if len(rows):
        part = batch.rows(rows)
        with torch.no_grad():
            a_hats = credits(model, part, config, before)
            student = score(model, part, config, tasks.student_prompt)
        focus = {name: concentration(a_hat, student, part.samples.mask) for name, a_hat in a_hats.items()}
        kinds = kinds_of(part)
        for kind in sorted(set(kinds)):
            index = torch.tensor([i for i, of_row in enumerate(kinds) if of_row == kind])
            logps = score(model, part.rows(index), config, tasks.student_prompt)
            for name, a_hat in a_hats.items():  # the policy ratio of a first update is 1, its clip idle
                found[name, kind] = flat(-(logps * a_hat[index, : logps.shape[1]]).sum() / tokens)
    seen = partial(tasks.teacher_view, privileged=config.privileged)
    with torch.no_grad():
        right = logits(model, list(map(seen, batch.problems)), batch.samples, config.temperature)
        wrong = logits(model, list(map(seen, with_hints(batch).problems)), batch.samples, config.temperature)
    mine = logits(model, list(map(tasks.student_prompt, batch.problems)), batch.samples, config.temperature)
    found["OPSD", "all"] = flat(opsd_loss(mine, right, tokens))
    found["without style", "all"] = flat(variants.without_style_loss(mine, right, wrong, tokens))
    return found, focus


def combined(found: Gradients) -> Gradients:
    """Sums over kinds of samples: right, all; wide weights on some kinds alone; GRPO beside distillation."""
    zero = torch.zeros_like(next(iter(found.values())))
    of = lambda name, kind: found.get((name, kind), zero)
    sums = dict(found)
    for name in dict.fromkeys(name for name, kind in found if kind in KINDS):
        sums[name, "right"] = of(name, "reference") + of(name, "other")
        sums[name, "all"] = sums[name, "right"] + of(name, "wrong")
    for name, kinds in PARTLY.items():
        sums[name, "all"] = sum((of(WIDE_WEIGHTS if kind in kinds else GRPO, kind) for kind in KINDS), zero)
    for name, weight in BESIDE.items():
        sums[name, "all"] = sums.get((GRPO, "all"), zero) + weight * of("without style", "all")
    return sums


# ---- many batches ----------------------------------------------------------------------------------------------------


class Moments:
    """Sums over batches from which the figures follow; a batch without a gradient of some name counts as 0."""

    def __init__(self) -> None:
        self.batches = 0
        self.sums: dict[tuple[str, str], Tensor] = {}  # (3,P): of g, of g^2, of g times GRPO's g on the same samples

    def add(self, found: Gradients) -> None:
        self.batches += 1
        for (name, kind), g in found.items():
            sums = self.sums.setdefault((name, kind), torch.zeros(3, len(g)))
            sums[0] += g
            sums[1].addcmul_(g, g)
            if (GRPO, kind) in found:
                sums[2].addcmul_(g, found[GRPO, kind])

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """{weighting: {kind: {gain, signal, and of Adam's step, g over its root mean square: adam}}}."""
        n, pairs = self.batches, self.batches * (self.batches - 1)
        found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for (name, kind), sums in self.sums.items():
            if (GRPO, kind) not in self.sums:
                continue
            mine, squares, products = sums.double()
            theirs, their_squares = self.sums[GRPO, kind][:2].double()
            size, their_size = (x.sum().div(n).sqrt().clamp(min=1e-30) for x in (squares, their_squares))
            step = 1 / (squares / n).sqrt().add(1e-8)
            length = (squares * step.square()).sum().div(n).sqrt().clamp(min=1e-30)
            found[name][kind] = {
                "gain": float((mine @ theirs - products.sum()) / pairs / (size * their_size)),
                "signal": float((mine @ mine - squares.sum()) / pairs / size.square()),
                "adam": float(((mine * step) @ theirs - (products * step).sum()) / pairs / (length * their_size)),
            }
        return dict(found)


def rounded(figures: dict) -> dict:
    """Five digits of every number, at any depth."""
    return {k: rounded(v) if isinstance(v, dict) else float(f"{v:.5g}") for k, v in figures.items()}


@explained()
def measure(
    model: Transformer, source: tasks.Source, verifier: Verifier, config: Config, batches: int, before=None
) -> dict:
    """Held-out scores, figures at the batch's own size and, of all samples, at BLOCK times as many; concentration."""
    small, large, block, focus = Moments(), Moments(), dict[tuple[str, str], Tensor](), defaultdict(list)
    for step in range(1, batches + 1):
        batch = train.rollout(model, source, verifier, config, step)
        found, carried = gradients(model, batch, config, before)
        sums = combined(found)
        small.add(sums)
        for key in [key for key in sums if key[1] == "all"]:
            block[key] = block[key] + sums[key] if key in block else sums[key]
        if step % BLOCK == 0:
            large.add(block)
            block = {}
        for name, share in carried.items():
            focus[name].append(share)
    if (GRPO, "all") not in small.sums or small.sums[GRPO, "all"][1].sum() == 0:
        raise UserError(f"none of {batches} batches has a group whose rewards differ")
    samples = config.prompts_per_step * config.group_size
    return {
        **evaluate(model, source, verifier, config),
        **evaluate_teacher(model, source, verifier, config),
        "batches": batches,
        "concentration": rounded({name: sum(shares) / len(shares) for name, shares in focus.items()}),
        "figures": {
            str(samples): rounded(small.figures()),
            **({str(BLOCK * samples): rounded(large.figures())} if large.batches > 1 else {}),
        },
    }


def show(found: dict) -> None:
    print(f"pass@1 {found['pass@1']:.3f}, teacher {found['teacher pass@1']:.3f}; {found['batches']} batches")
    names = next(iter(found["figures"].values()))
    for samples, figures in found["figures"].items():
        base = figures[GRPO]["all"]
        print(f"{samples + ' samples':32} {'worth':>7} {'by Adam':>8} {'cosine':>7} {'noise':>7}")
        for name in [name for name in names if name in figures]:
            gain, signal, adam = (figures[name]["all"][key] / base[key] if base[key] else float("nan") for key in base)
            cosine = gain / signal**0.5 if signal > 0 else float("nan")
            print(f"{name:32} {gain * abs(gain):7.2f} {adam * abs(adam):8.2f} {cosine:7.3f} {signal:7.2f}")


@program
def main(argv: list[str]) -> int:
    with interruptible():
        own, config = parse(argv, "split.py", __doc__)
        config = dataclasses.replace(config, evidence="contrastive")  # so that a wrong answer of the group comes along
        source, verifier = load_source(config)
        model = policy_of(own.policy, config, source)
        before = policy_of("", config, source) if own.policy else None
        return finish(measure(model, source, verifier, config, own.batches, before), show, own.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
