"""Mistakes that a careful maintainer might make: no word misspelt, nothing crashes, a figure is wrong somewhere.

At least one in every file of the tree, written down before it was known whether a test sees it. What stands behind `-`
is found once in the file; with what stands behind `+` in its place a test has to fail. make planted makes each and runs
the tests of that file, then the others that name it: results/planted.json.
"""

from typing import NamedTuple

from museum import entries


class Mistake(NamedTuple):
    file: str
    mistake: str
    old: str
    new: str


TEXT = r"""
rlsd.py: the log's share of tokens at the lower clip is that of a clip in log space
    - "clipped_low": weights < 1 - eps_w,
    + "clipped_low": weights < 1 / (1 + eps_w),
model.py: what writes into the residual stream is scaled by blocks, not by writers: there are two a block
    - std / (2 * config.num_layers) ** 0.5 if deep
    + std / config.num_layers**0.5 if deep
verifiers.py: a part mark is rounded to right or wrong
    -     if numeric and 0 <= (value := float(returned)) <= 1:
    -         return value
    +     if numeric and 0 <= (value := float(returned)) <= 1:
    +         return float(round(value))
tasks.py: 12+34 is held out and 34+12 is trained on
    - numbers = lambda problem: tuple(sorted(
    + numbers = lambda problem: tuple((
tasks.py: the filler of a problem is drawn once, not before each step
    -     word = lambda: "".join(rng.choices("abcdefgh", k=filler)) + " " if filler else ""
    +     one = "".join(rng.choices("abcdefgh", k=filler)) + " " if filler else ""
    +     word = lambda: one
rollout.py: the noise of a step does not follow the seed
    - seed=rng.getrandbits(62)
    + seed=step
rollout.py: the teacher of --privileged solution is shown the answer
    - view = lambda problem: tasks.teacher_view(problem, config.privileged)
    + view = lambda problem: tasks.teacher_view(problem, "answer")
rollout.py: parts of a batch are cut by --micro_batch alone, --micro_tokens is forgotten
    - if config.micro_batch or config.micro_tokens or config.fsdp:
    + if config.micro_batch or config.fsdp:
train.py: means of the parts are weighted by all tokens, not by those that are scored
    - share = float(part.samples.mask.sum() / scored)
    + share = float(part.samples.mask.sum() / tokens)
train.py: the teacher that distils starts from random weights, as only rlsd's is synced
    - if config.method not in ("grpo", "opd"):
    + if config.method == "rlsd":
train.py: the gradient norm is told after clipping
    - metrics["grad_norm"] = total_norm(norm).item()
    + metrics["grad_norm"] = min(total_norm(norm).item(), config.max_grad_norm)
train.py: the credit of samples.jsonl is that of the policy after the update
    -             run.show(step, batch, lam)  # samples.jsonl, where it is time
    -             metrics = fitted(policy, teacher, optimizer, batch, config, lam)
    +             metrics = fitted(policy, teacher, optimizer, batch, config, lam)
    +             run.show(step, batch, lam)
train.py: an update whose gradient overflows is made all the same
    - if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
    + if math.isfinite(metrics["loss"]):
config.py: --init trains at the rate of a small model
    - "lr": 1e-6
    + "lr": 2e-4
sample.py: without a question it is always the first of the held-out ones
    - held_out[args.seed % len(held_out)]
    + held_out[0]
sample.py: --rlsd_lambda in place of the run's is read, and dropped
    - ("seed", *FILES) or name.startswith("rlsd_")
    + ("seed", "rlsd_reweight_clip_range", *FILES)
plot.py: --out is not looked at
    - curves(args.runs, args.out)
    + curves(args.runs, Path("curves.png"))
reproduce.py: the quick cut is written over the committed study
    - results = folder / "results" if args.quick else ROOT / "results"
    + results = ROOT / "results"
reproduce.py: the report counts runs of an older study
    - current(read(results / "study"), runs)
    + read(results / "study")
bench.py: --smoke measures at full size
    - SMOKE if args.smoke else Size()
    + Size()
harness/checkpoint.py: a resumed run's teacher is its policy
    - fill(self.teacher, state["teacher"])
    + fill(self.teacher, state["model"])
harness/checkpoint.py: a resumed run has forgotten how good its best policy was
    - self.step, self.best, micro_batch = state["step"], float(state["best"]), state.get("micro_batch", 0)
    + self.step, self.best, micro_batch = state["step"], -1.0, state.get("micro_batch", 0)
harness/console.py: the seconds to the last evaluation are those of all updates
    - for row in rows if row["step"] <= last["step"]
    + for row in rows
harness/console.py: resident memory on Linux, told in KiB, is taken for bytes
    - 2**30 if sys.platform == "darwin" else 2**20
    + 2**20 if sys.platform == "darwin" else 2**30
harness/curves.py: the mean of neighbours leaves out the last of them
    - values[max(0, i - SMOOTH) : i + SMOOTH + 1]
    + values[max(0, i - SMOOTH) : i + SMOOTH]
harness/evaluation.py: pass@1 is measured at the training temperature
    - samples = held_out_samples(model, prompts, config, 1.0)
    -         cited
    + samples = held_out_samples(model, prompts, config, config.temperature)
    +         cited
harness/evaluation.py: half of the points are a right answer
    - float(reward == 1) for reward in rewards
    + float(reward >= 0.5) for reward in rewards
harness/evaluation.py: of each run its own noise in evaluations: seeds differ by more than their policies
    - **sampling(config, temperature, seed=0)
    + **sampling(config, temperature, seed=config.seed)
harness/memory.py: two moments in float32 are four bytes
    - moved = size + 8 if
    + moved = size + 4 if
harness/memory.py: a failed pass takes a sample off, not half of them
    - config.micro_batch = size // 2
    + config.micro_batch = size - 1
harness/models.py: --warm_seed 0 is taken for none
    - config.seed if config.warm_seed < 0 else
    + config.seed if config.warm_seed <= 0 else
harness/models.py: OPD's teacher is the other run's last policy
    - fill(teacher, load(folder / "best.pt", config.device))
    + fill(teacher, load(folder / "last.pt", config.device)["model"])
harness/options.py: the fingerprint forgets the verifier's file
    - names = [config.data, verifier_file(config.verifier), config.eval_data]
    + names = [config.data, config.eval_data]
harness/options.py: a run may go on at another temperature
    - CHANGEABLE = "steps lr
    + CHANGEABLE = "steps lr temperature
harness/problems.py: the time limit of --verifier_timeout does not reach the verifier
    - verifier_of(config.verifier or source.verifier, config.verifier_timeout)
    + verifier_of(config.verifier or source.verifier)
harness/problems.py: the longest prompt is the student's
    - longest = max(len(tasks.teacher_view(problem, config.privileged)), len(tasks.student_prompt(problem)))
    + longest = len(tasks.student_prompt(problem))
harness/run.py: tokens/s counts samples
    - processes.total(batch.samples.mask.sum()).item() / seconds
    + processes.total(batch.samples.mask.any(1).sum()).item() / seconds
harness/run.py: the entropy is a mean of sums over samples
    - "entropy": -logp / length
    + "entropy": -logp
harness/run.py: a checkpoint falls where an evaluation is due
    - step % config.save_every == 0 or
    + step % config.eval_every == 0 or
harness/warm_start.py: the key forgets the share of solutions shown
    - values += [warm_seed(config), solution_share(config)
    + values += [warm_seed(config)
harness/warm_start.py: the key forgets the careless solutions' code
    - verifiers.py sources/*.py published/*.py
    + verifiers.py published/*.py
harness/warm_start.py: a warm start that goes on corrects Adam's bias again
    - "step": torch.tensor(float(step))
    + "step": torch.tensor(0.0)
harness/warm_start.py: the teacher's examples slip as often as the student's
    - problem = work(problem, rng, config.warm_teacher_slip)
    + problem = work(problem, rng, config.warm_slip)
harness/watch.py: skipped updates are counted over the whole run, not in a row
    - self.skipped + 1 if "skipped" in row else 0
    + self.skipped + 1 if "skipped" in row else self.skipped
harness/look.py: the completions of all problems are drawn by the same noise
    - how = sampling(config, config.temperature, seed=i)
    + how = sampling(config, config.temperature, seed=0)
harness/threads.py: what a user has set in OMP_NUM_THREADS is passed over
    - elif "OMP_NUM_THREADS" not in os.environ and (small or
    + elif (small or
support/child.py: a function's answer is waited for on the clock as long as on its own
    - seconds=PATIENCE * seconds)
    + seconds=seconds)
support/errors.py: of a long line the end is left out
    - f"{line[: LONGEST_LINE - 205]} ... {line[-200:]}"
    + f"{line[:LONGEST_LINE]}"
support/files.py: the last checkpoint's own line is dropped with those after it
    - if row["step"] > last_step:
    + if row["step"] >= last_step:
support/files.py: a file is renamed before its bytes are on the disk
    -             to_disk(temporary)  # before the name is: power may fail in between
    -             os.replace(temporary, path)
    +             os.replace(temporary, path)
    +             to_disk(path)
support/judge.py: a group with dropped samples is standardised with them as zeros
    - advantages[rest] = group_advantages(rewards[rest], len(rest))
    + whole = rewards[group : group + config.group_size].nan_to_num(0.0)
    +             advantages[rest] = group_advantages(whole, len(whole))[rest - group]
support/micro_batches.py: a pass may hold one token more than --micro_tokens
    - 0 < config.micro_tokens < (len(parts[-1]) + 1) * sum(joint)
    + 0 < config.micro_tokens < (len(parts[-1]) + 1) * sum(joint) - 1
support/numbers.py: where nothing moves, no metrics are told
    - return (metrics if tokens else {}) | {
    + return {
support/processes.py: the processes take turns at the problems, so that equal questions are parted
    - return [problem for problem in problems if place[problem.question] % world() == rank()]
    + return [problem for i, problem in enumerate(problems) if i % world() == rank()]
support/program.py: Ctrl-C is a success
    - code, failure = 130, UserError
    + code, failure = 0, UserError
support/shards.py: gradients of shards are averaged
    -         module.set_gradient_divide_factor(1.0)  # a sum, as add_up makes it
support/workers.py: there are more processes than questions an update
    - max(1, min(cores, MOST, int(said.get("prompts_per_step", 16))))
    + max(1, min(cores, MOST))
baselines/losses.py: the two halves of the divergence have each other's weights
    - return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    + return (1 - beta) * _kl(teacher, mixture) + beta * _kl(student, mixture)
baselines/methods.py: a sample with part marks is shown as a right one
    - right = [reward == 1.0 for reward in batch.rewards.tolist()]
    + right = [reward > 0 for reward in batch.rewards.tolist()]
baselines/methods.py: the distillation's teacher is shown the answer, whatever --privileged says
    - shown = [tasks.teacher_view(problem, config.privileged) for problem in problems]
    + shown = [tasks.teacher_view(problem, "answer") for problem in problems]
baselines/readings.py: of two options on the evidence the second is passed over
    - if config.rlsd_thought_only:
    + elif config.rlsd_thought_only:
sources/careless.py: careless solutions come without the filler of the others
    - return partial(kind, filler=config.filler) if kind else
    + return kind if kind else
sources/gym.py: held-out questions may be drawn for training
    - if _text(problem) not in apart and all(
    + if problem.question not in listed and all(
sources/jsonl.py: which problems are held out follows the file's name
    - random.Random("held out").sample(aside
    + random.Random(f"held out {path}").sample(aside
sources/scorers.py: an expression may leave some of its numbers out
    - return used == sorted(numbers) and expression
    + return set(used) <= set(numbers) and expression
sources/verifier_process.py: the limit of an answer holds for the start, not for the answer
    - return reward_of(self.ask(completion, answer, seconds=self.seconds))
    + return reward_of(self.ask(completion, answer))
published/chat.py: an export asks without the run's own words
    - made.template, made.note = template, note
    + made.template, made.note = tokenizer.template or template, note
published/chat_template.py: white space is cut at the other end than the template does
    - (0, 1): str.lstrip, (1, 0): str.rstrip
    + (0, 1): str.rstrip, (1, 0): str.lstrip
published/folder.py: an export lacks the chat template
    - ["generation_config.json", "chat_template.jinja"]
    + ["generation_config.json"]
published/rounded_adam.py: every step rounds by the same chance
    - .manual_seed(n)  # a resumed run rounds as it would have
    + .manual_seed(0)
published/rounded_adam.py: the second moment is not corrected for its start at zero
    - ((square / (1 - b2**n)).sqrt() + self.eps)
    + (square.sqrt() + self.eps)
published/tokenizer.py: text is not brought to NFC
    - text = unicodedata.normalize("NFC", text) if self.nfc else text
    + text = unicodedata.normalize("NFC", text) if not self.nfc else text
published/weights.py: without a head_dim Qwen's is the width over the heads too
    - "head_dim": 128 if family == "qwen3" else width // heads
    + "head_dim": width // heads
published/weights.py: an export says the type of the folder it came from
    - config["dtype"] = str(model.embed.weight.dtype).removeprefix("torch.")
    + config.setdefault("dtype", str(model.embed.weight.dtype).removeprefix("torch."))
credit/answers.py: every try draws the same group
    - rollout(run.model, source, run.verifier, config, step=group)
    + rollout(run.model, source, run.verifier, config, step=1)
credit/page.py: the clip of w is symmetric in log space
    - clipped = min(max(token.weight, 1 - eps_w), 1 + eps_w)
    + clipped = min(max(token.weight, 1 / (1 + eps_w)), 1 + eps_w)
credit/page.py: the token farthest above plain GRPO's is outlined, not the farthest
    - key=lambda t: abs(depths[t])
    + key=lambda t: depths[t]
credit/questions.py: a prompt that just fits is refused
    - if longest > room:
    + if longest >= room:
credit/terminal.py: raised and lowered have each other's colours
    - INK = {1: (195, 153, 111, 69, 25), -1: (230, 223, 215, 208, 166)
    + INK = {-1: (195, 153, 111, 69, 25), 1: (230, 223, 215, 208, 166)
credit/tokens.py: P_T is that of the evidence's reading, a probability above 1 at times
    - torch.stack([logps.exp(), shown.exp()
    + torch.stack([logps.exp(), teacher_logps.exp()
study/bootstrap.py: intervals of 90 % are called 95 %
    - np.quantile(draws, [0.025, 0.975])
    + np.quantile(draws, [0.05, 0.95])
study/bootstrap.py: an interval that touches its mark is above it
    - self.n >= FEWEST and self.low > mark
    + self.n >= FEWEST and self.low >= mark
study/cost.py: the warm-up update is timed, and its seconds are spread over the others
    - if update == 1:
    + if update == 0:
study/execute.py: a run that was broken off counts as finished
    - if resumed and metrics_of(out)[-1]["step"] == json.loads((out / "config.json").read_text())["steps"]:
    + if resumed:
study/execute.py: recorded figures are rounded to two digits
    - round(row[k], 5)
    + round(row[k], 2)
study/figures.py: the x axis shows the tokens of an update, not those so far
    - tokens = np.cumsum([row.get("length", 0) * run["samples"] for row in run["curve"]])
    + tokens = np.array([row.get("length", 0) * run["samples"] for row in run["curve"]])
study/plan.py: tuning shares the warm start of the comparison
    -         if self.lr:
    -             return 2
study/probe.py: the student's logits of OPSD are not taken at the sampling temperature
    - student_logits = logits(model, prompts, batch.samples, config.temperature)
    + student_logits = logits(model, prompts, batch.samples, 1.0)
study/probe.py: a batch is compared with a mean that it is a part of
    - total - g["GRPO"], dim=0
    + total, dim=0
study/first_page.py: a claim that nobody measured stands on the first page as a dash
    - for claim, _, figure, *_ in claims if figure != "-"}
    + for claim, _, figure, *_ in claims}
study/report.py: a speed that was not always reached is as clear as another
    - return "undecided" if never and verdict == "holds" else verdict
    + return verdict
study/scores.py: the final pass@1 is the last evaluation alone
    - return float(evaluations(run)[1][-2:].mean())
    + return float(evaluations(run)[1][-1:].mean())
study/language.py: learning rates are chosen on the tickets that are reported
    - == (method, lr, 100)] or [-1.0]
    + == (method, lr, 7)] or [-1.0]
study/localise.py: the prior of a step's place has seen the problem that it is asked about
    - rates = {problem: (total - own)[0] / np.maximum(1, (total - own)[1])
    + rates = {problem: total[0] / np.maximum(1, total[1])
study/compare.py: three seeds have an interval like ten
    - if figure.n >= FEWEST or not figure.n else
    + if figure.n >= 3 or not figure.n else
study/split.py: a batch's noise is counted as signal: it is multiplied with itself
    - (mine @ theirs - products.sum())
    + (mine @ theirs)
study/oracles.py: letters of free choice decide
    - if i not in wording
    + if True
study/variants.py: distillation without style aims at the ratio alone, and not at the policy times it
    - target = student_logits.detach() + ratio
    + target = ratio
study/headroom.py: a policy is probed on the problems that it was trained on
    - --seed {self.seed + 1000}
    + --seed {self.seed}
study/headroom_report.py: what pays after RL alone is said to pay
    - holds(of) and holds(of + AFTER)
    + holds(of + AFTER)
speed/matrix_products.py: the floor of an update lacks the gradient of the weights
    - back = [(gradient, w), (gradient.t(), x), *back]
    + back = [(gradient, w), *back]
speed/memory.py: the peak is told in KiB
    - return sum(1024 * int(line.split()[1])
    + return sum(int(line.split()[1])
speed/peers.py: the other side computes in the precision of its own default
    - folder, dtype=torch.float32)
    + folder, dtype=torch.bfloat16)
speed/sampling.py: tokens a second count padding
    - return int((stopped == 0).sum())
    + return int(stopped.numel())
speed/stages.py: a stage inside another is counted twice
    - self.seconds[stage] += elapsed - self.inside
    + self.seconds[stage] += elapsed
speed/steps.py: a turn begins with the moments that the turn before it left
    - for part in (self.state.policy, self.state.teacher, self.state.optimizer) if part
    + for part in (self.state.policy, self.state.teacher) if part
speed/table.py: a least ratio is taken for a greatest one
    - ratio >= float(limit) if sign == ">=" else
    + ratio >= float(limit) if sign == "<=" else
speed/several.py: what several processes gain is told upside down
    - of(1)))
    -     return {**compared(several, one), "ratios": time_ratios(one, several)}
    + of(1)))
    +     return compared(several, one)
speed/turns.py: the warm-up counts
    - return [results[1:] for results in measured]
    + return measured
speed/workload.py: all models of a run have different weights
    -     torch.manual_seed(0)
    -     return Transformer(config)
    +     return Transformer(config)
examples/support_rules/my_rules.py: more may follow the decision
    - DECISION.fullmatch(final)
    + DECISION.match(final)
examples/support_rules/make_tickets.py: the year of a broken one has a day more
    - days <= 365:
    + days <= 366:
examples/support_rules/llm.py: what is asked of a run that goes on is not passed on
    - train(*run, "--resume", *options,
    + train(*run, "--resume",
examples/trl_rlsd.py: lambda is that of the update before
    - self.state.global_step + 1
    + self.state.global_step
examples/dry_run.py: the model is made in float32
    - torch.set_default_dtype(torch.bfloat16)
    + torch.set_default_dtype(torch.float32)
examples/smollm2/smollm2.py: keys stay in the order of the file
    - , "attn_k": fields["llama.attention.head_count_kv"]}
    + }
docs/exercises.py: the line is changed in what was read, and the file is written as it was
    - .write_text(text.replace(old, new))
    + .write_text(text)
"""

MISTAKES = [Mistake(*words.split(": ", 1), old, new) for (words,), old, new in entries(TEXT)]
