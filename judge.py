"""From completions to rewards: runs the verifier, and believes nothing but a float from 0 to 1."""

import tasks
from model import Samples
from run_files import UserError
from verifiers import Verifier


def verify(verifier: Verifier, samples: Samples, problems: list[tasks.Problem]) -> list[float]:
    """A reward in [0, 1] for each sample; a verifier that fails or returns anything else stops the run."""
    rewards = []
    for tokens, problem in zip(samples.completions(), problems):
        completion = tasks.decode(tokens)
        where = f"verifier, on {problem.origin} {problem.question[:60]!r} with the completion {completion[:60]!r}"
        try:
            reward = verifier(completion, problem.answer)
        except Exception as error:
            raise UserError(f"{where}: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error
        if isinstance(reward, (bool, str, bytes)) or not hasattr(reward, "__float__") or not 0 <= float(reward) <= 1:
            raise UserError(f"{where}: it returned {reward!r}; a float from 0 to 1 is needed")
        rewards.append(float(reward))
    return rewards
