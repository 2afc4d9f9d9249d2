"""RLSD in verl, for several GPUs and machines: the synchronous v1 trainer with `_compute_advantage` overridden.

    VERL_USE_EXTERNAL_MODULES=examples.verl_rlsd python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo ... \\
        +rlsd.rlsd_lambda=0.5 +rlsd.rlsd_lambda_decay_steps=50            # in the folder that holds rlsd.py

On a cluster that `ray start` made, the variable has to reach the workers as well, and the folder has to be importable
on every node: +ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=examples.verl_rlsd. Without it verl
takes its own trainer and says nothing; rlsd/lambda among the metrics shows that this one runs.

verl's registry of advantage estimators hands over rewards and masks, never a model. So the override asks the actor for
log-probabilities of the same responses behind the teacher's prompts, as verl asks it for old_log_probs, and stores
RLSD's advantages over GRPO's. The reference is `reward_model.ground_truth`, which verl's data sets carry; override
`teacher_prompt` for another text. Rollout, loss, optimizer and sharding stay verl's: for Algorithm 1 set
actor_rollout_ref.actor.clip_ratio_high=0.28 and loss_agg_mode=token-mean.

The teacher is the live policy, before its update: verl has no copy to sync every 10 updates, as the paper's teacher is.
Where a rollout is split into several mini-batches, lambda and log P_S are those of the first. Text only. Written for
verl 0.9.1 and tested on a CPU, on verl's own queue, with a stand-in for its workers: it has not been run on GPUs.
"""

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested, response_to_nested

from rlsd import evidence_weights, lambda_at, token_advantages

OPTIONS = {"rlsd_lambda": 0.5, "rlsd_reweight_clip_range": 0.2}
OPTIONS |= {"rlsd_lambda_warmup_steps": 0, "rlsd_lambda_decay_steps": 50}
FIELDS = ["prompts", "responses", "response_mask", "old_log_probs", "advantages", "raw_prompt", "reward_model"]
TEACHER = "rlsd_teacher"  # the teacher's rows in the TransferQueue, beside "train" and "val"


class RLSDTrainer(PPOTrainerSync):
    """PPOTrainerSync with RLSD's advantages; lambda 0 is GRPO. Raises ValueError for what cannot work."""

    def teacher_prompt(self, messages, reward_model):
        """The teacher's messages: the reference in front of the user's last, so that both views end alike."""
        note = f"Reference answer: {reward_model['ground_truth']}\n\n"
        at = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if at is None:
            raise ValueError("rlsd: a prompt has no user's message to show the reference in; override teacher_prompt")
        content = messages[at]["content"]  # text, or parts of which some may be images
        content = note + content if isinstance(content, str) else [{"type": "text", "text": note}, *content]
        return [*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)  # a row's tokens all carry its GRPO advantage
        given = dict(self.config.get("rlsd", {}))
        if not given.keys() <= OPTIONS.keys():
            raise ValueError(f"rlsd: unknown {sorted(given.keys() - OPTIONS.keys())}, known are {sorted(OPTIONS)}")
        lam, eps_w, warmup, decay = {**OPTIONS, **given}.values()
        lam = lambda_at(self.global_steps, lam, warmup, decay)
        metrics["rlsd/lambda"] = lam
        if lam == 0:
            return batch  # plain GRPO needs no teacher
        if (self.config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False):
            raise ValueError("rlsd: bypass_mode takes log P_S from the rollout engine and log P_T from the actor")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        data["teacher_log_probs"] = self._teacher_log_probs(batch.keys, data)
        names = ("advantages", "teacher_log_probs", "old_log_probs", "response_mask")
        a, teacher_logps, student_logps, mask = (data[name].to_padded_tensor(0) for name in names)  # (B, T)
        advantages = a.gather(1, mask.argmax(1, keepdim=True)).squeeze(1)  # (B,), of the first token that counts
        if ((a != advantages[:, None]) & mask.bool()).any():
            raise ValueError("rlsd: algorithm.adv_estimator must give one advantage a sample, as grpo does")
        evidence = (advantages, teacher_logps, student_logps, mask)
        a_hat = token_advantages(*evidence, lam, eps_w)
        weights = evidence_weights(*evidence)[0][mask.bool() & (advantages != 0)[:, None]]
        metrics["rlsd/clipped"] = ((weights < 1 - eps_w) | (weights > 1 + eps_w)).float().mean().nan_to_num().item()
        data["advantages"] = response_to_nested(a_hat, data["response_mask"])
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=data.select("advantages"))

    def _teacher_log_probs(self, keys, data):
        """Log-probabilities of the responses behind the teacher's prompts, by the actor, a nested (B, T)."""
        rows = []
        columns = (data[name] for name in ("prompts", "responses", "response_mask", "raw_prompt", "reward_model"))
        for key, prompt, response, mask, messages, reward_model in zip(keys, *columns, strict=True):
            if mask.any() and self._prompt_ids(messages) != prompt.tolist():  # rows that verl pads with count nowhere
                raise ValueError(
                    f"rlsd: the prompt of {key} is not its raw_prompt through the chat template "
                    "(tools, several turns, truncation), so the teacher's cannot be made the same way"
                )
            prompt = torch.tensor(self._prompt_ids(self.teacher_prompt(list(messages), reward_model)))
            ids = torch.cat([prompt, response])
            given = {"prompts": prompt, "responses": response, "response_mask": mask, "loss_mask": mask}
            rows.append({**given, "input_ids": ids, "position_ids": torch.arange(len(ids))})
        tags = [{"seq_len": len(row["input_ids"])} for row in rows]
        tq.kv_batch_put(keys=keys, partition_id=TEACHER, fields=list_of_dict_to_tensordict(rows), tags=tags)
        temperature = self.config.actor_rollout_ref.rollout.temperature
        extra = {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
        meta = KVBatchMeta(keys=keys, tags=tags, partition_id=TEACHER, extra_info=extra)
        self.actor_rollout_wg.compute_log_prob(meta)
        scored = tq.kv_batch_get(keys=keys, partition_id=TEACHER, select_fields=["log_probs", "response_mask"])
        tq.kv_clear(keys=keys, partition_id=TEACHER)
        return response_from_nested(scored["log_probs"], scored["response_mask"])

    def _prompt_ids(self, messages):
        options = self.config.data.get("apply_chat_template_kwargs", {})
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )


TRAINER_REGISTRY["sync"] = RLSDTrainer  # under its own name verl would take the trainer for an asynchronous one
