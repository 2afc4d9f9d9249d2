"""One run has to learn; and the margin that it must reach is one that no broken loss reached (tests/learning.py)."""

import json

from learning import ABOUT, FIGURES, LOSSES, MARGIN, gain


def test_it_learns_to_read_the_question(tmp_path):
    assert gain(tmp_path / "a", seed=0) >= MARGIN


def test_the_margin_lies_between_the_right_loss_and_every_broken_one():
    """The committed figures are those of this very setting; a mask off by one can reach 0.33, half of the reward."""
    figures = json.loads(FIGURES.read_text())
    gains = figures.pop("gains")
    assert figures | {"torch": ""} == ABOUT | {"torch": ""}
    assert gains.keys() == LOSSES.keys() and {len(values) for values in gains.values()} == {20}
    assert min(gains.pop("as it is")) > MARGIN > max(map(max, gains.values()))
