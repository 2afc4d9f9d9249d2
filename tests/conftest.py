"""What the tests find wherever they run: no verdict depends on what a machine, or somebody's shell, has set."""

import atexit
import importlib.util
import locale
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# What other programs are told by: Python, thread pools, torchrun, packages, terminals, locales.
OTHERS = re.compile(
    "PYTHON(?!PATH$|DONTWRITEBYTECODE$)|OMP_|KMP_|(MKL|OPENBLAS)_(NUM_THREADS|DYNAMIC|DOMAIN)|TORCH|PYTORCH_|"
    "NCCL_|GLOO_|MASTER_|(LOCAL_|GROUP_|ROLE_)?RANK$|(LOCAL_)?WORLD_SIZE$|HF_|TRANSFORMERS_|MPLBACKEND$|"
    "NO_COLOR$|FORCE_COLOR$|CLICOLOR|COLUMNS$|LINES$|TERM$|LC_|LANG|POSIXLY_CORRECT$"
)
for name in [name for name in os.environ if OTHERS.match(name)]:
    del os.environ[name]
os.environ.update(OMP_NUM_THREADS="1", PYTHONUTF8="1")  # two threads would wait for each other on a busy machine

# The verdict on a commit must not depend on luck: the same examples every time (HYPOTHESIS_PROFILE=explore: new ones).
# Nor on how fast the machine is.
patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, max_examples=60, **patient)
settings.register_profile("explore", max_examples=500, **patient)
# for planted mistakes (planted.py): the same examples, and no time spent on making a failing one small
settings.register_profile("museum", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config):
    """Where Python took something over at its start that tests cannot change any more, it starts again without."""
    utf8 = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()} <= {"utf-8", "utf8"}
    by_hand = not config.invocation_params.plugins  # not planted.py, which watches its tests from within
    if by_hand and (not utf8 or sys.flags.optimize or sys.flags.dev_mode):
        config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)])
    if importlib.util.find_spec("matplotlib") and "MPLCONFIGDIR" not in os.environ:
        home = os.path.join(os.path.expanduser("~"), ".cache")
        if not os.access(home if os.path.isdir(home) else os.path.dirname(home), os.W_OK):
            os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp()  # else each process would make one, and say so
            atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
    # taken out: a test may start a pytest of its own
    if file := os.environ.pop("PASSED", ""):
        config.pluginmanager.register(Once(set(Path(file).read_text(encoding="utf-8").split("\n")[:-1]), file))
    elif before := getattr(config, "workerinput", {}).get("passed"):
        config.pluginmanager.register(Once(set(before)))
    import torch

    torch.set_num_threads(1)


class Once:
    """PASSED=FILE: of several runs that share the file, each leaves out what an earlier one has passed; see .ci/run."""

    def __init__(self, before: set[str], file: str = ""):
        self.before, self.file = before, file

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        if gone := self.before - {item.nodeid for item in items}:
            raise pytest.UsageError(f"{self.file}: {len(gone)} tests passed before and are not here now: {min(gone)}")
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.before])
        items[:] = [item for item in items if item.nodeid not in self.before]

    @pytest.hookimpl(optionalhook=True)  # pytest-xdist's
    def pytest_configure_node(self, node):
        node.workerinput["passed"] = sorted(self.before)

    def pytest_runtest_logreport(self, report):
        if self.file and report.when == "call" and report.passed:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")


@pytest.fixture
def own_signals():
    """train.py takes the signals over; the tests want theirs back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_picture(monkeypatch):
    """Curves take more time than the rest of a small run, and have tests of their own."""
    monkeypatch.setattr("harness.curves.curves", lambda runs, out: out)


@pytest.fixture
def own_format():
    """A published model's run changes how texts are written; the tests want bytes back."""
    import tasks

    yield
    tasks.FORMAT, tasks.BYTES.marker = tasks.BYTES, "#### "
