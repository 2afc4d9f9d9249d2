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

from model import ModelConfig, Transformer  # noqa: E402
from published import weights  # noqa: E402

RULE = "calls = []\n\n\ndef check(completion, answer):\n    calls.append(1)\n    return len(calls) % 2.0\n"
OPTIONS = (
    "--dtype bfloat16 --gradient_checkpointing --steps 1 --prompts_per_step 1 --group_size 2 --max_new_tokens 24 "
    "--max_seq_len 256 --eval_problems 1 --chain 1"
)


def make(out: Path, tokenizer: Path, hidden_size: int, num_layers: int, vocab_size: int) -> None:
    """Write the model's folder."""
    heads = {"num_heads": hidden_size // 64, "num_kv_heads": hidden_size // 128, "head_dim": 128}
    rest = {"max_seq_len": 40960, "rope_theta": 1e6, "norm_eps": 1e-6}
    config = ModelConfig(vocab_size, hidden_size, 3 * hidden_size, num_layers, **heads, **rest)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    weights.save(Transformer(config), out)
    torch.set_default_dtype(torch.float32)
    shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")


def trained(init: Path, run: str, rule: Path, options: str, **more) -> tuple[int, float]:
    """Exit code and CPU seconds of train.py from the model `init` with the verifier, which is written to `rule`."""
    rule.write_text(RULE)
    command = [sys.executable, str(ROOT / "train.py"), "--init", str(init), "--out", run, *options.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run([*command, "--verifier", f"{rule}:check"], **more).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden_size", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--num_layers", type=int, default=28)
    parser.add_argument("--vocab_size", type=int, default=151936, help="the tokenizer's, or more")
    args = parser.parse_args(argv)
    make(args.out, args.tokenizer, args.hidden_size, args.num_layers, args.vocab_size)
    code, seconds = trained(args.out, f"{args.out}-run", args.out / "every_other.py", OPTIONS)
    print(f"the run took {seconds:.0f} s of CPU time")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
