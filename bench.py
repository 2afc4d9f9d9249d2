"""Speed and memory, beside what a user would take instead and beside this machine's own matrix products.

    pip install -r requirements/bench.txt    # transformers and trl; without them their rows are left out
    python bench.py                          # 40 minutes on two CPU cores; also writes results/bench.json, .md
    python bench.py --only sampling          # one row; written to --out alone, and so is --smoke
    python bench.py --device cuda            # the same table; writes results/bench-cuda.json

Both sides of a row hold the same weights and take turns in one process, A B A B ...: a ratio belongs to one pair of
turns, so a slow spell of the whole machine cancels. Other programs do not: where they hold a core, two threads wait for
each other at every small product, and the side with more of them looks slower than it is. The table shows the median of
the rounds [least..greatest].
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from speed.memory import peak_of_update
from speed.several import WORKERS
from speed.stages import operations, operations_table, profile, profile_table
from speed.table import HEADER, ROWS, in_one_thread, machine, measure, rounded, table_line, write
from speed.workload import SMOKE, Run, Size
from support.program import Parser, is_first, program

RESULTS = Path(__file__).resolve().parent / "results"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("bench.py", __doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--rounds", type=int, help="paired rounds (default: 7, with --smoke 2)")
    parser.add_argument("--only", metavar="NAME", choices=(*ROWS, "profile"), help=f"one of {', '.join(ROWS)}, profile")
    parser.add_argument("--out", help="file of the figures")
    parser.add_argument("--memory", choices=("ours", "full"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.rounds = args.rounds if args.rounds is not None else 2 if args.smoke else 7
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1 is needed")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU")
    if not (args.out or args.smoke or args.only):
        args.out = str(RESULTS / ("bench.json" if args.device == "cpu" else "bench-cuda.json"))
    if args.out and (Path(args.out).is_dir() or not Path(args.out).parent.is_dir()):
        parser.error(f"--out {args.out}: a file in a folder that is there is needed")
    return args


@program
def main(argv: list[str]) -> int:
    args = parse(argv)
    run = Run(SMOKE if args.smoke else Size(), args.device, args.rounds)
    if args.memory:
        print(peak_of_update(run, args.memory))
        return 0
    if args.worker:
        figures = WORKERS[args.worker](run)
        if is_first():
            print(json.dumps(figures))
        return 0
    result = {"machine": machine(args.device), "smoke": args.smoke, "rounds": args.rounds, "rows": []}
    load = result["machine"]["load_average"] or 0
    if load > 0.5:
        print(f"load average {load:.1f} before the start: if other programs are running, these ratios are off\n")
    if args.smoke:
        print("--smoke: everything runs at tiny sizes, not at those named here\n")
    tables = []
    if args.only != "profile":
        lines = list(HEADER)
        print("\n".join(lines), flush=True)
        for name in [args.only] if args.only else ROWS:
            result["rows"].append(measure(name, run))
            lines.append(table_line(result["rows"][-1]))
            print(lines[-1], flush=True)
        tables.append("\n".join(lines))
    if args.only in (None, "profile"):
        result["profile"] = profile(run)
        result["operations"] = in_one_thread(operations, run)
        tables += [profile_table(result["profile"]["stages"]), operations_table(result["operations"])]
        print("", *tables[-2:], sep="\n")
    result = rounded(result)
    print("\n" + json.dumps(result))
    if args.out:
        write(result, tables, Path(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
