"""The suite turns red for every mistake in the museum: each is made in a copy of the code, and its test is run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

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
