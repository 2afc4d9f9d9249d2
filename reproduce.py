"""The paper's claims, measured: methods x seeds -> results/study/*.jsonl -> results/report.md and figures.

    python reproduce.py             the whole study; finished runs are kept, a killed study goes on where it stopped
    python reproduce.py --quick     a cut of it for ten minutes, written to runs/quick
    python reproduce.py --report    tables and figures from the committed runs, nothing is trained
    python reproduce.py --cells addition:grpo,rlsd --seeds 0-4 --set "--steps 20"
                                    these methods alone, each paired with the first by seed, in runs/cells

Two processes at a time, one thread each. A cell is a set of options of train.py; a run is a cell with a seed.
"""

import json
import sys
from pathlib import Path

from study import headroom
from study.execute import ROOT, current, execute, execute_probes, read
from study.plan import Probe, Run, chosen, probes, quick, quick_probes, study
from support.errors import reading
from support.program import Parser, program


def write_report(runs: list[Run], probed: list[Probe], folder: Path, results: Path, out: Path) -> Path:
    """report.md and its figures in `out`, from what `results` holds of these runs and probes, and what it costs."""
    with reading(f"{out / 'report.md'} cannot be made"):
        from study import report

        costs = json.loads((results / "cost.json").read_text()) if (results / "cost.json").exists() else {}
        samples = [run.out(folder) / "samples.jsonl" for run in runs if run.method == "rlsd"]
        committed = ROOT / "results" / "make_train" / "rlsd_samples.jsonl"
        pair = next((path for path in samples if path.exists() and results != ROOT / "results"), committed)
        found = current(read(results / "study"), runs), current(read(results / "probe"), probed)
        cells = current(read(results / "headroom.jsonl"), headroom.cells())
        return report.write(*found, cells, costs, pair, out)


def compare_cells(cells: list[str], seeds: str, more: str, report_only: bool) -> int:
    """Make the runs of --cells that are not there yet, then print and draw each cell's comparison."""
    folder = ROOT / "runs" / "cells"
    wanted = [chosen(cell, seeds, more) for cell in cells]
    if not report_only:
        for runs in wanted:
            execute(runs, folder, folder / "results")
    from study import compare

    for runs in wanted:
        print(compare.write(runs, current(read(folder / "results"), runs), folder))
    return 0


@program
def main(argv: list[str]) -> int:
    parser = Parser("reproduce.py", __doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of the study for ten minutes")
    parser.add_argument("--report", action="store_true", help="tables and figures from the finished runs alone")
    parser.add_argument("--cells", nargs="+", metavar="TASK:METHOD,...", help="compare these methods (study/plan.py)")
    parser.add_argument("--seeds", default="0-4", help="of --cells (default: 0-4); under five give no interval")
    parser.add_argument("--set", default="", metavar="OPTIONS", help="options of train.py for every run of --cells")
    args = parser.parse_args(argv)
    if args.cells:
        if args.quick:
            parser.error("--quick is a cut of the whole study: give it or --cells")
        return compare_cells(args.cells, args.seeds, args.set, args.report)
    folder = ROOT / "runs" / ("quick" if args.quick else "study")
    results = folder / "results" if args.quick else ROOT / "results"
    runs, probed = (quick(), quick_probes()) if args.quick else (study(), probes())
    if not args.report:
        execute(runs, folder, results / "study")
        execute_probes(probed, folder, results / "probe")
        headroom.execute([] if args.quick else headroom.cells(), folder, results / "headroom.jsonl", jobs=2)
    print(write_report(runs, probed, folder, results, results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
