"""What a run leaves on disk: its folder, checkpoints, lines of metrics."""

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import ranks
from errors import UserError


def new_folder(name: str) -> str:
    """runs/NAME, or the first of runs/NAME.2, runs/NAME.3, ... that is not there yet."""
    n, folder = 1, f"runs/{name}"
    while Path(folder).exists():
        n += 1
        folder = f"runs/{name}.{n}"
    return folder


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it until this one ends, however it ends: the lock dies with it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {out}: another run is writing there; wait for its end, or choose another folder"
            ) from None
        except OSError as error:  # some network file systems
            print(f"warning: {out} cannot be locked ({error.strerror}): start no second run in it", flush=True)
        yield
    finally:
        os.close(folder)


def open_folder(out: Path, config: dict, resume: bool) -> None:
    """Clear the run's folder of what a killed run left; one that already holds a run is refused, or resumed."""
    if (out / "last.pt").exists() and not resume:
        raise UserError(f"--out {out} already holds a run: add --resume to go on with it, or choose another folder")
    left = ["*.[0-9]*.tmp"]  # half-written; the rest is of a run that was stopped before its first checkpoint
    left += [] if resume else ["metrics.jsonl", "samples.jsonl", "best.pt", "verifier_error.txt", "skipped-*.pt"]
    for path in [path for pattern in left for path in out.glob(pattern)]:
        path.unlink()
    replace(out / "config.json", lambda path: path.write_text(json.dumps({**config, "resume": False}, indent=1) + "\n"))


def save(state: dict, path: Path) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # handed a name, torch would not say what went wrong
            torch.save(state, file)

    replace(path, write)


def load(path: Path, device: str):
    """What torch has saved, tensors and plain values alone: UserError for a torn file, or one with code in it."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # its own message tells how to run what is in the file
        raise UserError(f"{path} is refused: torn, no file of torch's, or with more in it than tensors") from error


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model all of the weights that were read, or none: ValueError for another shape or one not finite."""
    mine = model.state_dict()
    shapes = {name: tuple(x.shape) for name, x in mine.items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    for name in shapes | found:
        if shapes.get(name) != found.get(name):
            raise ValueError(f"the shape of {name} is {found.get(name)}; {shapes.get(name)} is needed")
    check_finite(weights)
    model.load_state_dict({name: ranks.share_of(x, mine[name]) for name, x in weights.items()})


def check_finite(weights: dict[str, torch.Tensor]) -> None:
    for name, x in weights.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} is of {x.dtype}; numbers with a point are needed")
        if not torch.isfinite(x).all():
            raise ValueError(f"{int((~torch.isfinite(x)).sum())} values of {name} are not finite")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: a reader finds the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            write(temporary)
            to_disk(temporary)  # before the name is: power may fail in between
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk and its like become one line that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # behind torch's complaint about it
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{path} cannot be written: {cause.strerror}; files written before are whole, "
            "and --resume goes on from the last checkpoint, if there is one"
        ) from error


def lines_until(path: Path, last_step: int) -> list[str]:
    """The lines of steps up to `last_step`; what a kill left of a line ends them.

    UserError for a line before it that is no line of a run: the file is left as it is.
    """
    kept, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for i, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] > last_step:
                break
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            if i == len(lines):
                break
            raise UserError(f"{path}:{i}: no line of a run; mend or remove it, and resume again") from error
        kept.append(line.decode() + "\n")
    return kept


def truncate(path: Path, last_step: int) -> None:
    """Drop the lines of steps after the checkpoint that the run goes on from, a half-written last one included."""
    kept = lines_until(path, last_step)
    replace(path, lambda temporary: temporary.write_text("".join(kept)))


def append(path: Path, row: dict) -> None:
    with writing(path), open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def metrics_of(out: Path) -> list[dict]:
    """The lines of metrics.jsonl, a dict each."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
