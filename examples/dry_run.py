"""A folder of Qwen3-0.6B's shape with random bfloat16 weights: does a whole RLSD step fit into this machine?

    python examples/dry_run.py FOLDER_WITH_A_TOKENIZER qwen3-random
    python train.py --init qwen3-random --dtype bfloat16 --gradient_checkpointing --steps 1 --prompts_per_step 1 \\
        --group_size 2 --max_new_tokens 24 --max_seq_len 256 --eval_problems 1 --verifier my_rules.py:check

The tokenizer may be any that train.py takes, that of examples/smollm2 for one. A verifier that rewards at random
(`def check(completion, answer): return float(len(completion) % 2)`) makes sure that there is an update at all.
"""

import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pretrained  # noqa: E402
from model import ModelConfig, Transformer  # noqa: E402

QWEN3_06B = ModelConfig(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    max_seq_len=40960,
    rope_theta=1e6,
    norm_eps=1e-6,
)

if __name__ == "__main__":
    tokenizer, out = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    pretrained.save(Transformer(QWEN3_06B), out)
    shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")
