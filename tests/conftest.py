import os
import signal

import pytest
import torch
from hypothesis import Phase, settings

# The verdict on a commit must not depend on luck: the same examples every time (HYPOTHESIS_PROFILE=explore: new ones).
settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("explore", deadline=None, max_examples=500)
# for planted mistakes (planted.py): the same examples, and no time spent on making a failing one small
settings.register_profile("museum", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)


@pytest.fixture
def own_signals():
    """train.py takes the signals over; the tests want theirs back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
