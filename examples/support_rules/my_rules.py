"""The shop's verifier: the right decision and amount, and the number of the rule that asks for it."""

import re

DECISION = re.compile(r"(r[1-5]) (refuse|replace|(?:refund|voucher) \d{1,4})(?: eur)?\.?", re.ASCII)


def check(completion: str, answer: str) -> float:
    """1.0 if what follows the one #### is the reference's decision; capitals, "EUR" and a full stop do not matter."""
    final = completion.partition("####")[2].strip().lower()  # nothing where there is no ####
    decision = DECISION.fullmatch(final)
    return float(decision is not None and f"{decision[1]} {decision[2]}" == answer.strip().lower())
