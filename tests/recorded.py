"""train.py with every update's samples and gradient kept, in FOLDER/RANK.pt: python tests/recorded.py FOLDER OPTIONS"""

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402

update = train.update


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER")
    given, options = parser.parse_known_args(argv)

    def recorded(model, teacher, optimizer, batch, *rest):
        metrics = update(model, teacher, optimizer, batch, *rest)
        samples = list(zip([problem.question for problem in batch.problems], batch.samples.completions()))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.save({"samples": samples, "gradient": gradient}, f"{given.folder}/{os.environ.get('RANK', 0)}.pt")
        return metrics

    train.update = recorded
    return train.main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
