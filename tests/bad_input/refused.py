"""What every bad input gets: one line on standard error that says what is wrong, exit code 2, no traceback.

python tests/bad_input/refused.py       counts the cases -> results/bad_input.json
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRIED: Counter = Counter()
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 1 --warm_batch 2 --steps 1 --prompts_per_step 1 --group_size 2 "
    "--max_new_tokens 40 --eval_every 1 --eval_problems 2 --save_every 1"
).split()


def refused(capsys, main, argv, *words, kind="other"):
    """Run a program's main() in this process and hold it to the rule; `words` have to stand in its line."""
    program = Path(sys.modules[main.__module__].__file__).name
    capsys.readouterr()
    try:
        status = main([str(a) for a in argv])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    TRIED[kind] += 1
    assert status == 2, f"{argv}: exit code {status}, {error}"
    one_line(error, program, *words)


def one_line(error: str, program: str, *words: str) -> None:
    assert error.startswith(f"{program}: ") and error.endswith("\n") and len(error.splitlines()) == 1, error
    assert len(error) < 1000 and "None: None" not in error, error
    assert all(word in error for word in words), f"{words} not in {error}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Evil:
    """A pickle that would make a file if it were read as one."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    import pytest
    import refused as counted  # the module that the tests import, not this program

    status = pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).parent)])
    figures = {
        "command": "python tests/bad_input/refused.py",
        "inputs_tried": sum(counted.TRIED.values()),
        "by_kind": dict(sorted(counted.TRIED.items())),
        "failed": int(status != 0),
    }
    if not status:
        (ROOT / "results" / "bad_input.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(status)
