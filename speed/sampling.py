"""Sampled tokens a second beside transformers' `generate`, and how time a token grows with the length."""

from statistics import mean, median

import torch

import tasks
from model import ModelConfig
from speed.peers import peers, to_transformers
from speed.turns import median_seconds, time_ratios, turns
from speed.workload import DEFAULT, NEVER, SMOKE, Run, draw, new_model, published_shape, random_prompts, wide_shape


def beside_generate(run: Run, config: ModelConfig, prompts: list[list[int]], tokens: int, stop: int) -> dict:
    """Tokens per second of our sampler over those of `generate`, completion tokens counted, padding not."""
    (transformers,) = peers("transformers")
    model = new_model(run, config)
    theirs = to_transformers(model)
    device, group = run.device, run.size.group
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad():
        torch.testing.assert_close(theirs(padded).logits, model(padded), atol=1e-4, rtol=0)
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": group}
    ends = {"max_new_tokens": tokens, "eos_token_id": None if stop == NEVER else stop, "pad_token_id": 0}
    settings = transformers.GenerationConfig(**how, **ends)

    def ours(i: int) -> int:
        return int(draw(model, prompts, group, tokens, stop, i).mask.sum())

    def generate(i: int) -> int:
        torch.manual_seed(i)
        drawn = theirs.generate(input_ids=padded, attention_mask=mask, generation_config=settings)[:, longest:]
        stopped = (drawn == stop).cumsum(dim=1) - (drawn == stop).long()  # the stop token itself still counts
        return int((stopped == 0).sum())

    a, b = turns(run, ours, generate)
    return {
        "ratios": [(m / s) / (n / t) for (s, m), (t, n) in zip(a, b)],
        "tokens_per_second": median(m / s for s, m in a),
        "tokens_per_second_beside": median(n / t for t, n in b),
        "tokens": mean(m for _, m in a),
        "tokens_beside": mean(n for _, n in b),
    }


def sampling(run: Run) -> dict:
    return beside_generate(run, DEFAULT, random_prompts(run.size.prompts, 6, 20), run.size.tokens, tasks.END)


def sampling_512(run: Run) -> dict:
    _, _, prompts, tokens = run.size.wide
    return beside_generate(run, wide_shape(run), random_prompts(prompts, 6, 20), tokens, NEVER)


def sampling_published(run: Run) -> dict:
    prompts, group, length, tokens, _ = run.size.published
    run = run._replace(size=run.size._replace(group=group)) if run.size is not SMOKE else run
    return beside_generate(run, published_shape(run), random_prompts(prompts, length, length), tokens, NEVER)


def length(run: Run) -> dict:
    """Seconds a token of sampling the fourth length over those of the first; all lengths take turns."""
    size = run.size
    model = new_model(run, ModelConfig(tasks.TOKENIZER.n_vocab, max_seq_len=8 + max(size.lengths)))
    prompts = random_prompts(max(1, size.prompts // 4), 8, 8)
    works = [lambda i, T=T: draw(model, prompts, size.group, T, NEVER, i) for T in size.lengths]
    results = turns(run, *works)
    first, fourth = size.lengths[0], size.lengths[3]
    return {
        "ratios": [ratio * first / fourth for ratio in time_ratios(results[3], results[0])],
        "seconds_per_token": {T: median_seconds(r) / T for T, r in zip(size.lengths, results)},
    }
