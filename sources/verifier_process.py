"""A verifier of the user's own in a process of its own: what it does, it does to another process than the run's."""

import importlib.util
import os
import subprocess
import sys

import verifiers
from support.child import ROOT, Worker
from verifiers import Failed, Verifier, reward_of


class Rule(Worker):
    """The verifier `name` of the user's file at `path`; `seconds` are what one answer may take, 0: any time."""

    seconds = 0.0

    def __init__(self, path: str, name: str):
        options = {"stderr": None if sys.__stderr__ else subprocess.DEVNULL}
        super().__init__("sources.verifier_process", "alone", path, name, **options)
        try:
            self.ask()
        except TimeoutError as error:
            raise Failed(str(error)) from None

    def __call__(self, completion: str, answer: str) -> float:
        try:
            return reward_of(self.ask(completion, answer, seconds=self.seconds))
        except TimeoutError:
            raise Failed(f"it took longer than --verifier_timeout {self.seconds:g} seconds") from None


def alone(path: str, name: str) -> Verifier:
    """In that process: the user's function, whose file finds its neighbours and none of ours.

    It goes by its own name, unless the standard library or an installed package has that: so what it starts can import
    it.
    """
    folder, stem = os.path.split(path.removesuffix(".py"))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) not in (ROOT, folder)]
    sys.argv[:] = [path]
    for module in [name for name in sys.modules if name.partition(".")[0] in ("sources", "support", "verifiers")]:
        del sys.modules[module]
    del sys.modules["__main__"].__file__  # which processes that the file starts would run
    taken = "." in stem or stem in sys.modules or importlib.util.find_spec(stem) is not None
    packages = [i for i, entry in enumerate(sys.path) if entry.endswith("-packages")]  # site-, dist-
    sys.path.insert(len(sys.path) if taken or not packages else packages[0], folder)
    return verifiers.from_file(path, name, "" if taken else stem)
