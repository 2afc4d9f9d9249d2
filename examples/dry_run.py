"""A random model of Qwen3-0.6B's shape, in bfloat16, and a whole RLSD step on it: does that fit into this machine?

python examples/dry_run.py FOLDER_WITH_A_TOKENIZER qwen3-random      # 70 s of CPU time, 9 GiB; other sizes by options

The tokenizer may be any that train.py takes, that of examples/smollm2 for one. The verifier calls every other
completion right, so that there is an update at all. The run is in qwen3-random-run.
"""

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pretrained  # noqa: E402
from model import ModelConfig, Transformer  # noqa: E402

RULE = "calls = []\n\n\ndef check(completion, answer):\n    calls.append(1)\n    return len(calls) % 2.0\n"
OPTIONS = (
    "--dtype bfloat16 --gradient_checkpointing --steps 1 --prompts_per_step 1 --group_size 2 --max_new_tokens 24 "
    "--max_seq_len 256 --eval_problems 1 --chain 1"
)


def make(out: Path, tokenizer: Path, hidden_size: int, num_layers: int, vocab_size: int) -> None:
    """Write the model's folder and the verifier."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 128,
        head_dim=128,
        max_seq_len=40960,
        rope_theta=1e6,
        norm_eps=1e-6,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    pretrained.save(Transformer(config), out)
    torch.set_default_dtype(torch.float32)
    shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")
    (out / "every_other.py").write_text(RULE)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden_size", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--num_layers", type=int, default=28)
    parser.add_argument("--vocab_size", type=int, default=151936, help="the tokenizer's, or more")
    args = parser.parse_args(argv)
    make(args.out, args.tokenizer, args.hidden_size, args.num_layers, args.vocab_size)
    command = [sys.executable, str(ROOT / "train.py"), "--init", str(args.out), "--out", f"{args.out}-run"]
    done = subprocess.run([*command, *OPTIONS.split(), "--verifier", f"{args.out}/every_other.py:check"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"the run took {used.ru_utime + used.ru_stime:.0f} s of CPU time")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
