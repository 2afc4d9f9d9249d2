"""Write tickets.jsonl: support tickets, the decision that the shop's policy asks for, and the rule it follows from.

python examples/support_rules/make_tickets.py          # 600 tickets, the same ones every time
"""

import argparse
import json
import random
from pathlib import Path

POLICY = {
    "R1": "R1: gift cards are final, refuse",
    "R2": "R2: broken within 365 days, replace",
    "R3": "R3: sealed and within 30 days, refund the price",
    "R4": "R4: opened and within 30 days, voucher of the price",
    "R5": "R5: no other rule applies, refuse",
}
GOODS = ("kettle", "lamp", "radio", "jacket", "toaster", "chair", "gift card")
STATES = {
    "broken": ("it broke", "it stopped working", "it is dead"),
    "sealed": ("it is still sealed", "I never opened it", "the box is closed"),
    "opened": ("I used it once", "I opened the box", "I tried it on"),
}


def decide(goods: str, price: int, days: int, state: str) -> tuple[str, str]:
    """The first rule that applies, and what it decides."""
    if goods == "gift card":
        return "R1", "refuse"
    if state == "broken" and days <= 365:
        return "R2", "replace"
    if state == "sealed" and days <= 30:
        return "R3", f"refund {price}"
    if state == "opened" and days <= 30:
        return "R4", f"voucher {price}"
    return "R5", "refuse"


def ticket(rng: random.Random) -> dict[str, str]:
    goods, price, state = rng.choice(GOODS), rng.randrange(10, 100, 10), rng.choice(list(STATES))
    days = rng.randint(1, 30) if rng.random() < 0.6 else rng.randint(31, 500)
    rule, decision = decide(goods, price, days, state)
    question = f"{goods}, {price} EUR, {days} days ago: {rng.choice(STATES[state])}"
    return {"question": question, "answer": f"{rule} {decision}", "rule": POLICY[rule]}


def tickets(n: int, seed: int) -> list[dict[str, str]]:
    """n tickets, no two alike."""
    rng, made = random.Random(seed), {}
    while len(made) < n:
        row = ticket(rng)
        made[row["question"]] = row
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=Path(__file__).with_name("tickets.jsonl"))
    args = parser.parse_args()
    Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in tickets(args.n, args.seed)))


if __name__ == "__main__":
    main()
