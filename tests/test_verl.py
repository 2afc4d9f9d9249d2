"""examples/verl_rlsd.py on a real TransferQueue, with a stand-in for the GPU workers: `make test-verl`."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("verl", reason="verl is not installed: make test-verl")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import hydra  # noqa: E402
import ray  # noqa: E402
import transfer_queue as tq  # noqa: E402
import verl  # noqa: E402
import verl_rlsd  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls  # noqa: E402
from verl.utils.config import validate_config  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402

from rlsd import lambda_at, token_advantages  # noqa: E402

TEMPERATURE = 0.7  # not 1: a score that forgets it is seen
VOCAB = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyzRU0123456789 +=?:\n"]
QUESTIONS = (("1+2=", "3"), ("is 12 even?", "yes"), ("7=", "7"))
GROUP = 3


@pytest.fixture(scope="module", autouse=True)
def queue():
    # 8 is a number to count with, not cores; ray's workers are nice by 15, on a busy machine too nice ever to start
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _system_config={"worker_niceness": 0})
    tq.init()
    yield
    tq.close()
    ray.shutdown()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}U:{{ m['content'] }}\n{% endfor %}R:"
    return tokenizer


def make_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(VOCAB), "num_key_value_heads": 1, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # far from uniform, so that the two views differ by more than rounding
            weight.mul_(4 if weight.dim() > 1 else 1)
    return model


@torch.no_grad()
def all_logps(model, ids, temperature):
    """log p of every next token of one sequence; the last place, which has none, is poisoned."""
    logps = (model(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
    return torch.cat([logps[:-1].gather(1, ids[1:, None]).squeeze(1), torch.tensor([float("nan")])])


class Workers:
    """Stands for the actor's worker group: reads a batch from the queue, writes what verl's engine would write."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def compute_log_prob(self, batch):
        self.calls.append(batch)
        assert not batch.extra_info["compute_loss"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
        assert all(torch.equal(p, torch.arange(len(p))) for p in data["position_ids"])
        rows = [all_logps(self.model, ids, batch.extra_info["temperature"]) for ids in data["input_ids"]]
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = {name: nested for name in ("log_probs", "entropy")[: 1 + batch.extra_info["calculate_entropy"]]}
        fields = TensorDict(fields, batch_size=len(rows))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch


def make_trainer(cls, **options):
    trainer = object.__new__(cls)  # verl's __init__ builds clusters
    rollout = {"n": GROUP, "temperature": TEMPERATURE, "calculate_log_probs": False}
    actor = {"loss_agg_mode": "token-mean", "loss_scale_factor": None}
    algorithm = {"adv_estimator": "grpo", "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0}
    parts = {"algorithm": algorithm, "actor_rollout_ref": {"rollout": rollout, "actor": actor}, "data": {}}
    trainer.config = OmegaConf.create({**parts, "rlsd": options})
    trainer.tokenizer, trainer.actor_rollout_wg, trainer.global_steps = make_tokenizer(), Workers(make_model()), 2
    return trainer


def make_batch(tokenizer, partition, multi_turn=False):
    """Rows as verl's agent loop leaves them, with a hole in one response mask, and one row of verl's padding."""
    g = torch.Generator().manual_seed(5)
    keys, rows = [], []
    for q, (question, answer) in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        prompt = torch.tensor(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        for i in range(GROUP):
            response = torch.randint(1, len(VOCAB), (int(torch.randint(1, 7, (1,), generator=g)),), generator=g)
            mask = torch.ones_like(response)
            if len(response) > 4:
                mask[2] = 0  # a token that the policy did not write
            reward = torch.zeros(len(response))
            reward[-1] = torch.rand(1, generator=g) if q < 2 else 1.0  # the third group has no spread
            keys.append(f"q{q}_{i}_0")
            tokens = {"prompts": prompt[1:] if multi_turn else prompt, "responses": response, "response_mask": mask}
            told = {"uid": f"q{q}", "raw_prompt": messages, "reward_model": {"ground_truth": answer}}
            rows.append({**tokens, **told, "rm_scores": reward})
    one = torch.ones(1, dtype=torch.int64)
    keys.append("padx_0_0")
    padding = {"prompts": one, "responses": one, "response_mask": 0 * one, "rm_scores": torch.zeros(1)}
    rows.append({**rows[0], "uid": "padx", **padding})
    for row in rows:
        row["input_ids"] = torch.cat([row["prompts"], row["responses"]])
        row["position_ids"] = torch.arange(len(row["input_ids"]))
        row["loss_mask"] = row["response_mask"]
    tags = [{"seq_len": len(row["input_ids"])} for row in rows]
    return tq.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(rows), tags=tags), rows


def step(cls, partition, at=2, multi_turn=False, config=None, **options):
    """verl's own old_log_probs, then the advantages -> (those in the queue, a tensor a row; rows; trainer; metrics)."""
    trainer, metrics = make_trainer(cls, **options), {}
    trainer.global_steps = at
    trainer.config.merge_with(config or {})
    batch, rows = make_batch(trainer.tokenizer, partition, multi_turn)
    batch.extra_info["temperature"] = TEMPERATURE
    trainer._compute_old_log_prob(batch, metrics)
    batch = trainer._compute_advantage(batch, metrics)
    data = tq.kv_batch_get(keys=batch.keys, partition_id=partition, select_fields=["advantages"])
    got = dict(zip(batch.keys, data["advantages"].unbind()))
    tq.kv_clear(keys=batch.keys, partition_id=partition)
    assert verl_rlsd.TEACHER not in tq.kv_list() or not tq.kv_list(verl_rlsd.TEACHER)[verl_rlsd.TEACHER]
    return [got[key] for key in batch.keys], rows, trainer, metrics


def test_verl_takes_the_launch_command_of_the_docs():
    """Composed and validated as main_ppo does it before anything starts."""
    command = (ROOT / "docs/trainers.md").read_text().split("verl.trainer.main_ppo ")[1].split("```")[0]
    config_dir = str(Path(verl.__file__).parent / "trainer" / "config")
    with hydra.initialize_config_dir(config_dir, version_base=None):
        config = hydra.compose("ppo_trainer", command.replace("\\\n", " ").split())
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    assert config.trainer.use_v1 and get_trainer_cls(config.trainer.v1.trainer_mode) is verl_rlsd.RLSDTrainer
    assert config.rlsd.keys() <= verl_rlsd.OPTIONS.keys()
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES == "examples.verl_rlsd"


@pytest.mark.parametrize("options, at", [({"rlsd_lambda": 0.0}, 2), ({"rlsd_lambda_decay_steps": 4}, 4)])
def test_lambda_zero_is_verls_grpo(options, at):
    plain, *_ = step(PPOTrainerSync, "plain", at)
    got, _, trainer, metrics = step(verl_rlsd.RLSDTrainer, "zero", at, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True)) and any(a.any() for a in plain)
    assert len(trainer.actor_rollout_wg.calls) == 1 and metrics["rlsd/lambda"] == 0  # old_log_probs alone


def test_advantages_are_rlsd_by_hand():
    plain, *_ = step(PPOTrainerSync, "plain2")
    options = {"rlsd_lambda": 0.8, "rlsd_lambda_warmup_steps": 1, "rlsd_lambda_decay_steps": 8}
    got, rows, trainer, metrics = step(verl_rlsd.RLSDTrainer, "rlsd", rlsd_reweight_clip_range=0.3, **options)
    lam, moved, model = lambda_at(2, 0.8, 1, 8), 0, trainer.actor_rollout_wg.model
    for values, base, row in zip(got, plain, rows, strict=True):
        n, mask = len(row["responses"]), row["response_mask"][None]
        if not mask.any():
            assert not values.any()
            continue
        answer, question = row["reward_model"]["ground_truth"], row["raw_prompt"][0]["content"]
        text = f"U:Reference answer: {answer}\n\n{question}\nR:"
        teacher_ids = torch.cat([torch.tensor(trainer.tokenizer(text)["input_ids"]), row["responses"]])
        teacher = all_logps(model, teacher_ids, TEMPERATURE)[-n - 1 : -1]
        student = all_logps(model, row["input_ids"], TEMPERATURE)[-n - 1 : -1]
        A = base[row["response_mask"].bool()][:1]
        expected = token_advantages(A, teacher[None], student[None], mask, lam, 0.3)[0]
        assert torch.allclose(values, expected, atol=1e-6, rtol=0)
        moved += int((values != base).sum())
    assert moved > 10 and metrics["rlsd/lambda"] == lam and 0 < metrics["rlsd/clipped"] <= 1


def test_a_teacher_that_sees_no_more_is_verls_grpo(monkeypatch):
    monkeypatch.setattr(verl_rlsd.RLSDTrainer, "teacher_prompt", lambda self, messages, reward_model: messages)
    plain, *_ = step(PPOTrainerSync, "plain3")
    got, _, trainer, metrics = step(verl_rlsd.RLSDTrainer, "same")
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True)) and metrics["rlsd/clipped"] == 0
    assert len(trainer.actor_rollout_wg.calls) == 2


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("rlsd_lamda", {"rlsd_lamda": 0.5}),
        ("bypass_mode", {"config": {"algorithm": {"rollout_correction": {"bypass_mode": True}}}}),
        ("several turns", {"multi_turn": True}),
    ],
)
def test_what_cannot_work_is_named(words, arguments, monkeypatch):
    if words == "bypass_mode":
        monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
        monkeypatch.setattr(PPOTrainerSync, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    with pytest.raises(ValueError, match=words):
        step(verl_rlsd.RLSDTrainer, f"bad{len(words)}", **arguments)
