"""The floor: sampling and an update beside nothing but their own matrix products, on this very machine."""

from statistics import median

import torch
from torch import Tensor, nn

import tasks
import train
from model import ModelConfig, Samples, Transformer
from rlsd import group_advantages
from rollout import Rollout, score
from speed.turns import compared, median_seconds, time_ratios, turns
from speed.workload import DEFAULT, NEVER, Run, config_of, draw, new_model, published_shape, random_prompts, wide_shape


def linear_products(model: Transformer, rows: int, head_rows: int, backward: bool) -> list[tuple[Tensor, Tensor]]:
    """The products of all linear layers with `rows` rows, the head's with `head_rows`; backward: two more for each."""
    ahead: list[tuple[Tensor, Tensor]] = []
    back: list[tuple[Tensor, Tensor]] = []
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        w, n = linear.weight.detach(), head_rows if linear is model.head else rows
        x, gradient = (w.new_empty(n, width).normal_() for width in (linear.in_features, linear.out_features))
        ahead.append((x, w.t()))
        back = [(gradient, w), (gradient.t(), x), *back]
    return ahead + back * backward


def attention_products(model: Transformer, rows: int, queries: int, keys: int, backward: bool) -> list:
    """Scores and their sums of values, in all layers: `queries` tokens of each row look at `keys` tokens."""
    c, new = model.config, model.embed.weight.new_empty
    batch, asking = rows * c.num_kv_heads, c.num_heads // c.num_kv_heads * queries
    sizes = (asking, c.head_dim), (keys, c.head_dim), (keys, c.head_dim), (asking, keys)
    products = []
    for _ in model.blocks:
        q, k, v, weights = (new(batch, *size).normal_() for size in sizes)
        products += [(q, k.mT), (weights, v)]
        products += [(q, v.mT), (weights.mT, q), (weights, k), (weights.mT, q)] * backward
    return products


def multiply(products: list[tuple[Tensor, Tensor]]) -> None:
    for a, b in products:
        (torch.mm if a.dim() == 2 else torch.bmm)(a, b)


def floor_decode(run: Run) -> dict:
    return decode_beside_products(run, DEFAULT, run.size.prompts, run.size.tokens)


def floor_decode_512(run: Run) -> dict:
    return decode_beside_products(run, wide_shape(run), *run.size.wide[2:])


def decode_beside_products(run: Run, shape: ModelConfig, prompts: int, tokens: int) -> dict:
    """Seconds of sample(), every row to its end and nothing left out, over those of its steps' products."""
    model, group, questions = new_model(run, shape), run.size.group, random_prompts(prompts, 8, 8)
    linear = linear_products(model, prompts * group, prompts * group, backward=False)
    attention = attention_products(model, prompts * group, 1, 8 + tokens // 2, backward=False)  # the mean context
    a, b, c = turns(
        run,
        lambda i: draw(model, questions, group, tokens, NEVER, i),
        lambda i: multiply((linear + attention) * tokens),
        lambda i: multiply(linear * tokens),
    )
    return {
        "ratios": time_ratios(a, b),
        "seconds_per_token": median_seconds(a) / tokens,
        "seconds_per_token_beside": median_seconds(b) / tokens,
        "ratio_to_the_linear_layers_alone": median(time_ratios(a, c)),
    }


def floor_update(run: Run) -> dict:
    """Seconds of train.update() without a teacher over those of its products, forward and backward."""
    return update_beside_products(run, DEFAULT, run.size.prompts, run.size.group, 9, run.size.floor_tokens)


def floor_update_published(run: Run) -> dict:
    prompts, group, length, _, T = run.size.published
    return update_beside_products(run, published_shape(run), prompts, group, length, T)


def update_beside_products(run: Run, shape: ModelConfig, prompts: int, group: int, length: int, T: int) -> dict:
    """`floor_update` on `prompts` of `length` tokens, `group` samples of T tokens each."""
    config, policy, N = config_of(run, "grpo"), new_model(run, shape), prompts * group
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, betas=(0.9, 0.99))
    questions = [tasks.Problem(f"{i:0{length - 2}d}", "0") for i in range(prompts)]  # a role's token on either side
    problems = [problem for problem in questions for _ in range(group)]
    samples = Samples.of(random_prompts(N, T, T), run.device)
    rewards = torch.arange(N, device=run.device) % 2.0
    batch = Rollout(problems, samples, rewards, group_advantages(rewards, group))
    with torch.no_grad():
        samples.logps = score(policy, batch, config, tasks.student_prompt)
    linear = linear_products(policy, prompts * length + N * (T - 1), N * T, backward=True)
    attention = attention_products(policy, N, T - 1, length + T - 1, backward=True)
    a, b, c = turns(
        run,
        lambda i: train.update(policy, None, optimizer, batch, config, 0.0),
        lambda i: multiply(linear + attention),
        lambda i: multiply(linear),
    )
    return {**compared(a, b), "ratio_to_the_linear_layers_alone": median(time_ratios(a, c))}
