"""What the trainer examples show their teacher: messages of every shape, also where verl is missing."""

import copy
import importlib
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

FOLDER = str(Path(__file__).parents[1] / "examples")
VERL = "verl verl.trainer verl.trainer.ppo verl.trainer.ppo.v1 verl.utils verl.workers verl.workers.utils".split()
VERL += ["verl.trainer.ppo.v1.trainer_base", "verl.trainer.ppo.v1.trainer_sync", "verl.utils.tensordict_utils"]
VERL += ["verl.workers.utils.padding", "transfer_queue"]


@pytest.fixture(scope="module", params=["trl", "verl"])
def view(request):
    """The example's function: (messages, reference) -> the teacher's messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(FOLDER)
        if request.param == "trl":
            pytest.importorskip("trl")
            return importlib.import_module("trl_rlsd").show_reference
        for name in VERL:
            patch.setitem(sys.modules, name, MagicMock())
        sys.modules["verl.trainer.ppo.v1.trainer_sync"].PPOTrainerSync = object
        patch.delitem(sys.modules, "verl_rlsd", raising=False)
        module = importlib.import_module("verl_rlsd")
        patch.delitem(sys.modules, "verl_rlsd")
        trainer = module.RLSDTrainer()
        return lambda messages, reference: trainer.teacher_prompt(messages, {"ground_truth": reference})


PARTS = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=5)),
        st.just({"type": "image", "image": "pixels"}),
        st.just({"type": "image"}),
    ),
    max_size=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=5) | PARTS},
        optional={"name": st.just("x")},
    ),
    max_size=5,
)
PICTURE_AND_TEXT = [{"type": "image"}, {"type": "text", "text": "How many?"}]
CHAT = [{"role": "user", "content": PICTURE_AND_TEXT}, {"role": "assistant", "content": "Of what?"}]
CHAT += [{"role": "user", "content": PICTURE_AND_TEXT[::-1]}]


@given(messages=MESSAGES, reference=st.text(max_size=5))
@example(messages=CHAT, reference="17")
def test_the_reference_goes_in_front_of_the_users_last_message(view, messages, reference):
    before, users = copy.deepcopy(messages), [i for i, m in enumerate(messages) if m["role"] == "user"]
    if not users:
        with pytest.raises(ValueError, match="no user's message") as told:
            view(messages, reference)
        assert "\n" not in str(told.value)
        return
    shown, note = view(messages, reference), f"Reference answer: {reference}\n\n"
    assert messages == before and len(shown) == len(messages)
    for i, (old, new) in enumerate(zip(messages, shown)):
        if i != users[-1]:
            assert new == old
        elif isinstance(old["content"], str):
            assert new == {**old, "content": note + old["content"]}
        else:  # the images stay, and stay in their order
            assert new == {**old, "content": [{"type": "text", "text": note}, *old["content"]]}
