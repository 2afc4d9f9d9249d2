"""Mistakes found in public re-implementations of RLSD and its relatives, as small changes to our own code.

Each with its number in the list of 15 that this project started from and a letter for each form of it; what it does
where it is made; its file, and the test that notices it. What stands behind `-` is found once in the file; with what
stands behind `+` in its place that test fails. make test makes every change and runs that test.
"""

from typing import NamedTuple

from museum import entries


class Piece(NamedTuple):
    number: str
    mistake: str
    consequence: str
    file: str
    noticed_by: str
    old: str
    new: str


TEXT = r"""
1a exp before the clip
    w overflows to inf, and the mean weight in the log with it
    rlsd.py: test_rlsd.py::test_weights_are_finite_and_above_zero_and_one_on_padding
    - log_weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    + log_weights.exp()
1b clip in log space
    weights lie in exp(+-eps), not in 1 +- eps: 0.82 to 1.22 where 0.8 to 1.2 is meant
    rlsd.py: test_rlsd.py::test_token_advantages_by_hand
    - clipped = weights.clamp(1 - eps_w, 1 + eps_w)
    + clipped = weights.log().clamp(-eps_w, eps_w).exp()
2a sign(0) taken as +1
    samples without advantage get weights; the log counts tokens that move nothing
    rlsd.py: test_rlsd.py::test_no_advantage_no_evidence
    - advantages.detach().sign()[:, None] * delta
    + torch.where(advantages.detach() >= 0, 1.0, -1.0)[:, None] * delta
2b no exact zero for equal rewards
    a float32 mean one rounding step off, over std + 1e-6: 655 of 1,485 pairs give |A| > 1e-4, the largest 0.19
    rlsd.py: test_rlsd.py::test_equal_rewards_give_exactly_zero
    - no_spread = grouped.amax(dim=1, keepdim=True) == grouped.amin(dim=1, keepdim=True)
    + grouped = grouped.float(); no_spread = torch.zeros_like(grouped[:, :1], dtype=torch.bool)
3 a teacher row that is too short, padded with 0
    log-probability 0 is probability 1: the last token is praised
    rollout.py: test_methods.py::test_an_update_is_the_loss_written_out
    -     teacher_logps = score(teacher, batch, config, view)  # (N, T)
    +     teacher_logps = score(teacher, batch, config, view)
    +     teacher_logps = torch.nn.functional.pad(teacher_logps[:, :-1], (0, 1))
4a teacher and student at different temperatures
    Delta is not 0 where both are the same model in the same view
    rollout.py: test_methods.py::test_an_update_is_the_loss_written_out
    - return token_logps(model, prompts, batch.samples, config.temperature)
    + return token_logps(model, prompts, batch.samples, config.temperature if torch.is_grad_enabled() else 1.0)
4b teacher shifted by one token
    every token gets the credit of its neighbour
    rollout.py: test_methods.py::test_an_update_is_the_loss_written_out
    - teacher_logps = score(teacher, batch, config, view)  # (N, T)
    + teacher_logps = score(teacher, batch, config, view).roll(1, dims=1)
5a mean of per-sequence means
    tokens of short answers weigh more
    rlsd.py: test_rlsd.py::test_global_token_mean_by_hand
    - loss = -surrogate.sum() / (tokens.clamp(min=1) if denominator is None else denominator)
    + loss = -(surrogate.sum(1) / valid.sum(1).clamp(min=1)).mean()
5b mean of per-micro-batch means
    the gradient depends on --micro_batch
    train.py: test_methods.py::test_an_update_is_the_loss_written_out
    - , denominator=tokens)
    + )
6a stop token left out of the mask
    stopping is never trained: completions grow to the limit
    model.py: test_model.py::test_shape_and_content_of_samples
    - lengths[rows] += alive
    + lengths[rows] += alive & (token[:, None] != stops).all(dim=1)
6b completions padded with the stop token, and the mask made by its id
    the pad eats the stop token itself
    model.py: test_model.py::test_shape_and_content_of_samples
    -     return Samples(tokens[:, :T], torch.arange(T, device=device) < lengths[:, None], logps[:, :T])
    +     padded = tokens[:, :T].where(torch.arange(T, device=device) < lengths[:, None], stop_token)
    +     return Samples(padded, padded != stop_token, logps[:, :T])
7a masking in place
    the caller's tensor changes under it
    rlsd.py: test_rlsd.py::test_what_stands_under_mask_zero_changes_nothing
    - delta = torch.where(mask.bool(), teacher_logps - student_logps, 0.0).detach()
    + delta = (teacher_logps.masked_fill_(~mask.bool(), 0) - student_logps.masked_fill(~mask.bool(), 0)).detach()
7b a normaliser that counts padding
    the update shrinks with the longest completion of the batch
    rlsd.py: test_rlsd.py::test_global_token_mean_by_hand
    - tokens = valid.sum()
    + tokens = torch.tensor(float(valid.numel()))
7c a normaliser that counts prompt tokens
    the update shrinks with the length of the questions
    train.py: test_methods.py::test_an_update_is_the_loss_written_out
    - tokens, scored = total(mask.sum())
    + tokens, scored = total(mask.sum() + sum(len(tasks.student_prompt(p)) for p in batch.problems))
8 'KL' as the mean of log P_S - log P_T over sampled tokens, which the gradient takes as given
    its gradient does not contain the teacher at all
    baselines/losses.py: test_baselines.py::test_opd_is_reverse_kl_and_its_gradient_contains_the_teacher
    - return (p.exp() * (p - q)).sum(dim=-1)
    + return (p.exp().detach() * (p - q)).sum(dim=-1)
9a top-k in the sampler, full softmax in the score
    the ratio rho starts away from 1
    model.py: test_model.py::test_sampling_and_scoring_agree
    -     logits = logits - logits.amax(dim=-1, keepdim=True)
    +     logits = logits.where(logits >= logits.topk(3).values[:, -1:], float('-inf'))
    +     logits = logits - logits.amax(dim=-1, keepdim=True)
9b dropout left on
    two scores of one sample differ
    model.py: test_model.py::test_training_and_evaluation_mode_are_the_same
    - return x + self.mlp(self.mlp_norm(x))
    + return x + F.dropout(self.mlp(self.mlp_norm(x)), 0.1)
10a cache slots read before they are written
    NaN of an empty tensor leaks through the mask into every row
    model.py: test_model.py::test_unwritten_memory_is_never_read
    - return self.keys[:, :, : self.length], self.values[:, :, : self.length]
    + return self.keys, self.values
10b is_causal with one query and many keys
    the query sees the first key alone
    model.py: test_model.py::test_fast_sampler_equals_the_slow_one
    - k, v, attn_mask=mask)
    + k, v, is_causal=True)
11 one first token for all samples of a group
    groups explore less than their size says
    model.py: test_model.py::test_a_group_does_not_share_its_first_token
    - noise[rows, t], temperature)
    + noise[rows - rows % group_size if t == 0 else rows, t], temperature)
12a groups keyed by the prompt's text
    two equal prompts of a batch merge into one group
    rollout.py: test_train.py::test_equal_questions_stay_two_groups
    -         advantages = group_advantages(rewards, config.group_size)  # (N,)
    +         same = {p.question: torch.tensor([q.question == p.question for q in problems]) for p in problems}
    +         advantages = torch.zeros_like(rewards)
    +         for rows in same.values():
    +             advantages[rows] = group_advantages(rewards[rows], int(rows.sum()))
12b noise keyed by the prompt's text alone
    two equal prompts of a batch draw the same samples
    model.py: test_model.py::test_equal_prompts_are_different_groups
    - repeat = seen[tuple(prompt)] = seen.get(tuple(prompt), -1) + 1
    + repeat = 0
13 reward mixed with a format term
    A > 0 for a well formatted wrong answer
    rollout.py: test_train.py::test_a_well_formatted_wrong_answer_earns_nothing
    -             rewards.append(reward_of(verifier(completion, problem.answer)))
    +             reward = reward_of(verifier(completion, problem.answer))
    +             rewards.append(0.9 * reward + 0.1 * ('####' in completion))
14a teacher never synced
    evidence of a policy that is long gone
    train.py: test_methods.py::test_what_holds_at_every_checkpoint
    - if config.method == "rlsd" and interval and step % interval == 0:
    + if False:
14b teacher synced before the update, not after it
    it is one update behind for a whole interval
    train.py: test_methods.py::test_what_holds_at_every_checkpoint
    -             metrics = fitted(policy, teacher, optimizer, batch, config, lam)
    -             sync(teacher, policy, step, config)
    +             sync(teacher, policy, step, config)
    +             metrics = fitted(policy, teacher, optimizer, batch, config, lam)
15a a verifier that evaluates the model's text
    9**9**9 hangs the run, and worse
    verifiers.py: test_verifiers.py::test_nothing_raises_and_every_reward_is_zero_or_one
    - value, used = _evaluate(left.strip())
    + value, used = eval(left.strip() or '0'), Counter()
15b a verifier that searches for the answer
    '11 or 12' counts for 12
    verifiers.py: test_verifiers.py::test_number_table
    - value = _parse_number(final_answer(completion))
    + value = _parse_number(answer.strip() if answer.strip() in completion else None)
15c part marks for junk
    the policy learns to write junk
    verifiers.py: test_verifiers.py::test_exact_table
    - return float(final_answer(completion) == answer.strip() != "")
    + return 1.0 if final_answer(completion) == answer.strip() != "" else 0.1 * bool(completion)
"""

PIECES = [
    Piece(*named.split(" ", 1), consequence, *where.split(": "), old, new)
    for (named, consequence, where), old, new in entries(TEXT)
]
