import os

import torch
from hypothesis import settings

# The verdict on a commit must not depend on luck: the same examples every time (HYPOTHESIS_PROFILE=explore: new ones).
settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)
