"""The suite turns red for every mistake in the museum: each is made in a copy of the code, and its test is run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from museum.mistakes import MISTAKES
from museum.pieces import PIECES
from museum.show import changed
from mutants import CORE, REST, files_of

SHOW = Path(__file__).with_name("museum") / "show.py"


@pytest.fixture(scope="module")
def verdicts():
    done = subprocess.run([sys.executable, str(SHOW), "--print"], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == len(PIECES), done.stderr
    return {row["number"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_the_museum_has_all_fifteen_mistakes():
    assert {re.sub("[a-z]", "", piece.number) for piece in PIECES} == {str(n) for n in range(1, 16)}


def test_every_file_has_a_mistake_to_plant():
    """In a place of its own, where the changed file can still be read; make planted sees whether a test fails."""
    for mistake in MISTAKES:
        ast.parse(changed(mistake))
    assert {mistake.file for mistake in MISTAKES} == set(files_of(CORE | REST))


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.number)
def test_the_suite_notices(piece, verdicts):
    """By the very test that is meant to: it fails, and it is no import or time limit that does."""
    row = verdicts[piece.number]
    assert row["outcome"] == "failed" and row["test"].split("[")[0] == piece.noticed_by, row


MADE_UP = """
import time, pytest

@pytest.fixture
def slow():
    time.sleep(0.2)

def test_good(slow):
    assert (2 + 2 == 4) is RIGHT

def test_bad():
    assert not RIGHT

def test_third():
    while not RIGHT:
        pass
"""
OF_A_COPY = f"""
import json, sys
sys.path.insert(0, {str(SHOW.parents[1])!r})
import planted
planted.warm_up()
with planted.Copy() as copy:
    (copy.folder / "tests" / "test_made_up.py").write_text("from made_up import RIGHT" + {MADE_UP!r})
    (copy.folder / "tests" / "made_up.py").write_text("RIGHT = True")
    found = copy.durations("test_made_up.py")
    sore = [test for test in found if found[test] is None]
    verdict = lambda text, **how: copy.verdict("tests/made_up.py", text, ["test_made_up.py"], **how).outcome
    outcomes = [verdict("RIGHT = True"), verdict("RIGHT = True", sore=sore), verdict("RIGHT = False", sore=sore)]
    outcomes += [verdict("RIGHT = False", sore=[*sore, next(iter(found))], cpu=1), verdict("RIGHT =", sore=sore)]
    outcomes.append(verdict("RIGHT = False", sore=found))
    planted.PATIENCE = 1
    only_third = dict(sore=[*sore, next(iter(found))], usual=dict.fromkeys(found, 0.01))
    endless = copy.verdict("tests/made_up.py", "RIGHT = False", ["test_made_up.py"], **only_third)
    outcomes.append(endless.outcome if endless.seconds < 100 else "late")
    print(json.dumps([found, outcomes]))
"""


def test_a_copy_times_its_tests_and_says_what_becomes_of_them():
    """Set-up counts; a test that fails as it is can be left out; one without end is ended; one cannot be read."""
    done = subprocess.run([sys.executable, "-c", OF_A_COPY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, outcomes = json.loads(done.stdout)
    good, bad, third = (found[f"test_made_up.py::test_{name}"] for name in ("good", "bad", "third"))
    assert bad is None and good >= 0.2 and good > third >= 0
    assert outcomes == ["failed", "passed", "failed", "dead", "broken", "passed", "dead"]


def test_mutants_of_texts_for_people_are_marked():
    source = 'said = parser(name, "two words", choices=pair, help="one")\noptions = "--two options" + "one"\n'
    found = {mutant.new: mutant.words for mutant in mutants.mutants("x.py", source)}
    assert {new for new, words in found.items() if words} == {
        "('two wordsX')",
        "(parser(name, 'two words', choices=pair))",
    }
    assert "('oneX')" in found and "('--two optionsX')" in found
