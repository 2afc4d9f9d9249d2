"""RLSD in TRL: a GRPOTrainer whose advantages are RLSD's, a value per token; sampling, loss and the rest stay TRL's.

    python examples/trl_rlsd.py         # a tiny model with random weights, offline, half a minute on one CPU core

`RLSDTrainer` takes what GRPOTrainer takes, and RLSD's options by the names of the authors' code. The data set needs a
column with the reference (`reference="answer"`); `teacher_prompt(prompt, reference)` makes the teacher's view of it.
The teacher is a copy of the policy, made anew by the first sampling at or after every `rlsd_teacher_sync_interval`-th
update (10 as in the paper; 1 is the live policy, without a copy; 0 the policy as it was at first). Of the copy, the
trained weights alone are kept: under LoRA, the adapter. TRL's checkpoints lack it: resuming copies the policy anew.

What differs from train.py: TRL divides by std + 1e-4 (ours: 1e-6); lambda and log P_S are those of the first update
after sampling, also for further updates on the same samples (num_iterations, steps_per_generation). Tested with TRL
1.16.0, of which three private methods are used; where another version has them no more, the import says so.
"""

import argparse
import inspect
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # before the libraries below are imported
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries below are imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # rlsd.py, where it is not installed

import torch  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

from rlsd import evidence_weights, lambda_at, token_advantages  # noqa: E402

try:
    from trl import GRPOConfig, GRPOTrainer

    for method, arguments in {
        "_generate_and_score_completions": "inputs",
        "_tokenize_prompts": "prompts",
        "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size",
    }.items():
        inspect.signature(getattr(GRPOTrainer, method)).bind(**dict.fromkeys(["self", *arguments.split()]))
except (ImportError, AttributeError, TypeError) as error:
    found = getattr(sys.modules.get("trl"), "__version__", "none")
    raise ImportError(f"trl_rlsd.py was tested with trl 1.16.0 and does not fit yours ({found}): {error}") from error


def show_reference(prompt, reference):
    """The teacher's prompt, text or chat messages: the reference in front of the user's last, both views end alike."""
    note = f"Reference answer: {reference}\n\n"
    if isinstance(prompt, str):
        return note + prompt
    at = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if at is None:
        raise ValueError("RLSDTrainer: a prompt has no user's message to show the reference in; give teacher_prompt=")
    content = prompt[at]["content"]  # text, or parts of which some may be images
    content = note + content if isinstance(content, str) else [{"type": "text", "text": note}, *content]
    return [*prompt[:at], {**prompt[at], "content": content}, *prompt[at + 1 :]]


class RLSDTrainer(GRPOTrainer):
    """GRPOTrainer with RLSD's advantages; lambda 0 is GRPOTrainer, bit for bit. ValueError for what cannot work."""

    def __init__(
        self, *args, reference="answer", teacher_prompt=show_reference, rlsd_lambda=0.5, rlsd_reweight_clip_range=0.2,
        rlsd_lambda_warmup_steps=0, rlsd_lambda_decay_steps=50, rlsd_teacher_sync_interval=10, **kwargs,
    ):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.reference, self.teacher_prompt, self.eps_w = reference, teacher_prompt, rlsd_reweight_clip_range
        self.schedule = (rlsd_lambda, rlsd_lambda_warmup_steps, rlsd_lambda_decay_steps)
        self.sync_interval, self.snapshot, self.synced_at = rlsd_teacher_sync_interval, None, 0
        if self.tools or self.environment_factories or self.rollout_func:
            raise ValueError("RLSDTrainer: no teacher's prompt follows what tools, environments or rollout_func make")
        if self.sync_interval != 1 and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("RLSDTrainer: sharded weights cannot be copied here; set rlsd_teacher_sync_interval=1")

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        lam = lambda_at(self.state.global_step + 1, *self.schedule)
        if lam == 0:
            return output  # plain GRPO needs no teacher
        if "num_images" in output or self.reference not in inputs[0]:
            raise ValueError(f"RLSDTrainer: text prompts with a column '{self.reference}' are needed, and no images")
        views = [self.teacher_prompt(row["prompt"], row[self.reference]) for row in inputs]
        ids = [torch.tensor(row, device=self.accelerator.device) for row in self._tokenize_prompts(views)[0]]
        teacher_ids = pad_sequence(ids, batch_first=True, padding_side="left")  # (B, P')
        teacher_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
        training = self.model.training
        self.model.eval()  # dropout would tell teacher and student apart by chance
        student_logps = self._score(self.model, output["prompt_ids"], output["prompt_mask"], output)  # (B, T)
        teacher_logps = self._score(self._teacher(), teacher_ids, teacher_mask, output)
        self.model.train(training)
        evidence = (output["advantages"], teacher_logps, student_logps, output["completion_mask"])
        self._log_evidence(lam, *evidence)
        return {**output, "advantages": token_advantages(*evidence, lam, self.eps_w)}  # (B,) -> (B, T)

    @torch.no_grad()
    def _score(self, model, prompt_ids, prompt_mask, output):
        """Log-probabilities (B, T) of the sampled tokens behind a left-padded prompt, at the sampling temperature."""
        ids = torch.cat([prompt_ids, output["completion_ids"]], dim=1)
        mask = torch.cat([prompt_mask, output["completion_mask"]], dim=1)
        return self._get_per_token_logps_and_entropies(
            model, ids, mask, output["completion_ids"].size(1), self.args.per_device_train_batch_size
        )[0]

    def _teacher(self):
        """The policy with the weights of the last sync: called as a model, it is the policy's own module."""
        step, every = self.state.global_step, self.sync_interval
        if every == 1:
            return self.model
        if self.snapshot is None or every and step // every != self.synced_at // every:
            self.snapshot = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
            self.synced_at = step
        return lambda **inputs: functional_call(self.model, self.snapshot, (), inputs)

    def _log_evidence(self, lam, advantages, teacher_logps, student_logps, mask):
        """Means over the tokens of samples that carry an advantage, on all processes."""
        low, high = 1 - self.eps_w, 1 + self.eps_w
        weights, _ = evidence_weights(advantages, teacher_logps, student_logps, mask)
        w = weights[mask.bool() & (advantages != 0)[:, None]]
        sums = torch.stack([x.sum() for x in (torch.ones_like(w), w.clamp(low, high), w < low, w > high)])
        count, *sums = self.accelerator.reduce(sums).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = [lam, *(value / max(count, 1) for value in sums)]
        for name, value in zip(("lambda", "weight", "clipped_low", "clipped_high"), means):
            metrics[f"rlsd/{name}"].append(value)


def tiny_tokenizer():
    """One token a character, made here: nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *"abcdefghij0123456789 ()="])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tiny_model(tokenizer):
    """A two-layer Llama with random weights, 67 thousand parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ends = {"bos_token_id": None, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ends))


def places_right(completions, answer, **_):
    """The verifier: the share of the answer's characters that stand in their place; what follows costs nothing."""
    return [sum(a == b for a, b in zip(text, wanted)) / len(wanted) for text, wanted in zip(completions, answer)]


def main():
    import warnings

    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback, set_seed

    class PrintLine(TrainerCallback):
        """One line every 25 updates."""

        def on_log(self, args, state, control, logs, **_):
            names = ("reward", "entropy", "rlsd/lambda", "rlsd/weight", "rlsd/clipped_low", "rlsd/clipped_high")
            if "reward" in logs:
                print(f"step={state.global_step}", *(f"{name}={logs[name]:.4g}" for name in names if name in logs))

    warnings.simplefilter("ignore", FutureWarning)  # names that the libraries below retire between themselves
    set_seed(0)
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": f"{letter}=", "answer": str(17 + 9 * i)} for i, letter in enumerate("abcdefghij")]
    sizes = {"max_steps": 150, "per_device_train_batch_size": 160, "num_generations": 16, "max_completion_length": 3}
    rates = {"learning_rate": 2e-3, "lr_scheduler_type": "constant", "seed": 0, "use_cpu": True, "bf16": False}
    said = {"logging_steps": 25, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    # Algorithm 1: token mean, clip-higher, no KL
    loss = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}
    args = GRPOConfig("runs/trl", **sizes, **rates, **said, **loss)
    trainer = RLSDTrainer(
        model=tiny_model(tokenizer),
        processing_class=tokenizer,
        reward_funcs=places_right,
        args=args,
        train_dataset=Dataset.from_list(rows),
        teacher_prompt=lambda prompt, reference: f"({reference}) {prompt}",
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PrintLine)
    trainer.train()


if __name__ == "__main__":
    main()
