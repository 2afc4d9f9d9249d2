"""examples/trl_rlsd.py beside TRL's own trainer, and beside log-probabilities taken one row at a time."""

import copy
import importlib
import inspect
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("trl", reason="trl is not installed: pip install trl")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import PrinterCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl_rlsd import RLSDTrainer, main, places_right, show_reference, tiny_model, tiny_tokenizer  # noqa: E402

from rlsd import lambda_at, token_advantages  # noqa: E402

ROWS = [
    {"prompt": prompt, "answer": answer}
    for prompt, answer in (("a=", "0123"), ("bcd=", "9"), ("fg=", "444"), ("c=", "71"), ("jihgf=", "20"), ("d=", "5"))
]
TEMPERATURE = 0.7  # not 1: a score that forgets it is seen
LIVE = {"rlsd_teacher_sync_interval": 1}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def reward_of(text):
    """Any number that differs between samples: groups without spread would carry no evidence."""
    return sum(map(ord, text)) % 7 / 6


rewards = lambda completions, **_: [reward_of(text) for text in completions]
in_front = lambda prompt, reference: f"({reference}) {prompt}"
student_view = lambda prompt, reference: prompt


class Recorder:
    """Mixed into a trainer: keeps every loss, what went into it, and the weights at each sampling."""

    def _generate_and_score_completions(self, inputs):
        self.__dict__.setdefault("weights", {})[self.state.global_step] = copy.deepcopy(self.model.state_dict())
        self.sampled_at = self.state.global_step
        return super()._generate_and_score_completions(inputs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.__dict__.setdefault("seen", []).append((self.sampled_at, dict(inputs), loss.item()))
        return loss


def build(folder, trainer_class, options=None, dropout=0.0, **settings):
    sizes = {"max_steps": 2, "per_device_train_batch_size": 12, "num_generations": 4, "max_completion_length": 8}
    chosen = {"learning_rate": 1e-2, "temperature": TEMPERATURE, "bf16": False, "use_cpu": True, "seed": 3}
    quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    args = GRPOConfig(output_dir=str(folder), **{**sizes, **chosen, **quiet, **settings})
    tokenizer = tiny_tokenizer()
    torch.manual_seed(1)
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for weight in model.parameters():  # far from uniform, so that the two views differ by more than rounding
            weight.mul_(4 if weight.dim() > 1 else 1)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    data, kind = Dataset.from_list(ROWS), type("Recorded", (Recorder, trainer_class), {})
    given = {"processing_class": tokenizer, "reward_funcs": rewards, "train_dataset": data, "eval_dataset": data}
    return kind(model=model, args=args, **given, **(options or {}))


def run(*args, **settings):
    trainer = build(*args, **settings)
    trainer.train()
    return trainer


def assert_same_run(one, other):
    assert [loss for _, _, loss in one.seen] == [loss for _, _, loss in other.seen]
    assert any(loss != 0 for _, _, loss in one.seen)
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values()):
        assert torch.equal(a, b), name


# ---- the limits: equal to GRPOTrainer, bit for bit -------------------------------------------------------------------


def test_lambda_zero_is_grpotrainer(tmp_path):
    plain = run(tmp_path, GRPOTrainer)
    assert_same_run(run(tmp_path, RLSDTrainer, {"rlsd_lambda": 0.0, "teacher_prompt": in_front}), plain)
    moved = run(tmp_path, RLSDTrainer, {"teacher_prompt": in_front})
    assert [loss for _, _, loss in moved.seen] != [loss for _, _, loss in plain.seen]


IN_PARTS = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
SETTINGS = [{"loss_type": name} for name in "dapo grpo bnpo dr_grpo cispo sapo vespo luspo".split()]
SETTINGS += [{"top_entropy_quantile": 0.5}, {"off_policy_mask_threshold": 0.5}, {"scale_rewards": "batch"}]
SETTINGS += [{"mask_truncated_completions": True}]
SETTINGS += [{**IN_PARTS, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 4}]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_teacher_that_sees_no_more_is_grpotrainer(tmp_path, settings):
    """The whole path, in every loss that TRL has: weights of exactly 1, a value a token."""
    rlsd = run(tmp_path, RLSDTrainer, {"teacher_prompt": student_view, **LIVE}, **settings)
    assert all(inputs["advantages"].shape == inputs["completion_mask"].shape for _, inputs, _ in rlsd.seen)
    assert_same_run(rlsd, run(tmp_path, GRPOTrainer, **settings))


def test_a_ratio_per_sequence_is_grpotrainer_up_to_the_order_of_sums(tmp_path):
    settings = {"importance_sampling_level": "sequence", "max_steps": 1}
    rlsd = run(tmp_path, RLSDTrainer, {"teacher_prompt": student_view, **LIVE}, **settings)
    plain = run(tmp_path, GRPOTrainer, **settings)
    assert rlsd.seen[0][2] == plain.seen[0][2]
    norms = [trainer.state.log_history[0]["grad_norm"] for trainer in (rlsd, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0


def test_dropout_is_no_evidence(tmp_path):
    trainer = run(tmp_path, RLSDTrainer, {"teacher_prompt": student_view, **LIVE}, dropout=0.5)
    for _, inputs, _ in trainer.seen:
        first = inputs["advantages"][:, :1]  # no completion is empty
        assert torch.equal(inputs["advantages"], first * inputs["completion_mask"])


# ---- the values: one row at a time, no padding, plain softmax --------------------------------------------------------


@torch.no_grad()
def slow_logps(model, prompt_ids, completion_ids):
    logits = model(input_ids=torch.tensor([prompt_ids + completion_ids])).logits[0] / TEMPERATURE
    logps = logits.double().log_softmax(-1)
    return torch.stack([logps[len(prompt_ids) + t - 1, token] for t, token in enumerate(completion_ids)])


def written(inputs):
    """The token ids of every prompt and completion of one loss call, without padding."""
    for i in range(len(inputs["completion_ids"])):
        yield [inputs[f"{part}_ids"][i][inputs[f"{part}_mask"][i].bool()].tolist() for part in ("prompt", "completion")]


def slow_advantages(inputs, tokenizer, student, teacher, lam, eps_w, group):
    """A_hat (B,T) of one loss call; `group` maps a prompt to the rewards of all its samples."""
    rows = []
    for prompt_ids, completion_ids in written(inputs):
        prompt = tokenizer.decode(prompt_ids)
        answer = next(row["answer"] for row in ROWS if row["prompt"] == prompt)
        teacher_ids = tokenizer(in_front(prompt, answer))["input_ids"]
        of_group = torch.tensor(group[prompt], dtype=torch.float64)
        reward = reward_of(tokenizer.decode(completion_ids, skip_special_tokens=True))
        A = ((reward - of_group.mean()) / (of_group.std() + 1e-4)).view(1)
        of_teacher = slow_logps(teacher, teacher_ids, completion_ids)[None]
        of_student = slow_logps(student, prompt_ids, completion_ids)[None]
        values = token_advantages(A, of_teacher, of_student, torch.ones(of_student.shape), lam, eps_w)[0]
        rows.append(torch.nn.functional.pad(values, (0, inputs["completion_ids"].size(1) - len(values))))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "interval, settings",
    [
        (10, {"max_steps": 3}),
        (1, {"max_steps": 3}),
        (0, {"max_steps": 3}),
        (2, {"max_steps": 5}),
        (2, {"max_steps": 5, **IN_PARTS}),
        (2, {"max_steps": 6, "steps_per_generation": 3, "per_device_train_batch_size": 4}),
    ],
)
def test_what_reaches_the_loss_is_rlsd_by_hand(tmp_path, interval, settings):
    options = {"teacher_prompt": in_front, "rlsd_lambda": 0.8, "rlsd_lambda_warmup_steps": 2}
    options |= {"rlsd_lambda_decay_steps": 8, "rlsd_reweight_clip_range": 0.3, "rlsd_teacher_sync_interval": interval}
    trainer = run(tmp_path, RLSDTrainer, options, **settings)
    tokenizer, plain = trainer.processing_class, tiny_model(trainer.processing_class).eval()
    sampled_at = sorted(trainer.weights)
    inside = 0
    for step in sampled_at:
        synced = 0 if interval == 0 else next(s for s in sampled_at if s // interval == step // interval)
        student, teacher = copy.deepcopy(plain), copy.deepcopy(plain)
        student.load_state_dict(trainer.weights[step])
        teacher.load_state_dict(trainer.weights[synced])
        batches = [inputs for at, inputs, _ in trainer.seen if at == step]
        group = {}
        for prompt_ids, completion_ids in (row for inputs in batches for row in written(inputs)):
            reward = reward_of(tokenizer.decode(completion_ids, skip_special_tokens=True))
            group.setdefault(tokenizer.decode(prompt_ids), []).append(reward)
        assert all(len(samples) == 4 for samples in group.values())
        lam = lambda_at(step + 1, 0.8, 2, 8)
        for inputs in batches:
            expected = slow_advantages(inputs, tokenizer, student, teacher, lam, 0.3, group)
            assert torch.allclose(inputs["advantages"].double(), expected, atol=2e-5, rtol=0), (step, synced)
            base = expected / slow_advantages(inputs, tokenizer, student, teacher, 0.0, 0.3, group)
            inside += int(((base - 1).abs() > 1e-3).sum())
    masks = torch.cat([inputs["completion_mask"].sum(1) for _, inputs, _ in trainer.seen])
    assert inside > 100 and masks.min() < masks.max()  # evidence that moves credit, and ragged completions


def test_what_the_log_says(tmp_path):
    options = {"teacher_prompt": in_front, "rlsd_lambda_decay_steps": 2, "rlsd_reweight_clip_range": 0.2}
    trainer = run(tmp_path, RLSDTrainer, options)
    first, second = trainer.state.log_history[:2]
    assert float(first["rlsd/lambda"]) == 0.25 and "rlsd/lambda" not in second  # 0 after the decay: no teacher is asked
    assert 0.8 <= float(first["rlsd/weight"]) <= 1.2
    assert 0 < float(first["rlsd/clipped_low"]) + float(first["rlsd/clipped_high"]) <= 1


def test_evaluation_scores_too_and_leaves_the_mode(tmp_path):
    trainer = build(tmp_path, RLSDTrainer, {"teacher_prompt": in_front}, per_device_eval_batch_size=12)
    trainer.model.eval()
    logs = trainer.evaluate()
    assert not trainer.model.training and "eval_loss" in logs
    assert "eval_rlsd/lambda" in trainer.state.log_history[-1]
    assert all(inputs["advantages"].dim() == 2 for _, inputs, _ in trainer.seen)
    trainer.train()
    assert trainer.model.training


# ---- the view and the refusals ---------------------------------------------------------------------------------------


def test_the_reference_stands_in_front_of_a_text_too():
    """Of messages: test_example_views.py."""
    assert show_reference("2+2=", "4").endswith("2+2=") and "4" in show_reference("2+2=", "4")


@pytest.mark.parametrize("name", ["_tokenize_prompts", "_get_per_token_logps_and_entropies"])
def test_another_trl_is_told_from_the_one_it_was_tested_with(monkeypatch, name):
    """A method that is gone, or that takes other arguments: one line with both versions, when it is imported."""
    monkeypatch.delitem(sys.modules, "trl_rlsd")
    monkeypatch.setattr(GRPOTrainer, name, lambda self, other: None)
    with pytest.raises(ImportError, match=rf"tested with trl 1\.16\.0 .*\({trl.__version__}\)"):
        importlib.import_module("trl_rlsd")


def test_the_trainer_is_short_and_the_version_it_was_tested_with_is_the_one_asked_for():
    source = (Path(__file__).parents[1] / "examples/trl_rlsd.py").read_text()
    assert "tested with trl 1.16.0" in source
    assert "trl==1.16.0\n" in (Path(__file__).parents[1] / "requirements/bench.txt").read_text()
    lines = map(str.strip, inspect.getsource(RLSDTrainer).splitlines())
    assert sum(line != "" and line[0] != "#" for line in lines) < 75  # with its docstrings


def test_the_example_trains_as_algorithm_1_says(monkeypatch):
    """Token mean, clip-higher, no KL; nothing is kept, and our line alone is printed."""
    made, trainer = [], Mock()
    monkeypatch.setattr("trl_rlsd.RLSDTrainer", lambda **given: made.append(given) or trainer)
    main()
    trainer.train.assert_called_once(), trainer.remove_callback.assert_called_once_with(PrinterCallback)
    args = made[0]["args"]
    assert (args.loss_type, args.epsilon, args.epsilon_high, args.beta) == ("dapo", 0.2, 0.28, 0.0)
    assert (args.report_to, args.disable_tqdm, args.save_strategy, args.logging_steps) == ([], True, "no", 25)
    assert places_right(["abc", "ab"], ["abd", "xb"]) == [2 / 3, 1 / 2]


def test_what_cannot_work_is_named(tmp_path):
    with pytest.raises(ValueError, match="rollout_func"):
        build(tmp_path, RLSDTrainer, {"rollout_func": lambda prompts, trainer: None})
    with pytest.raises(ValueError, match="'solution'"):
        run(tmp_path, RLSDTrainer, {"reference": "solution"})
