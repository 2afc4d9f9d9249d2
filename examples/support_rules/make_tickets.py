"""Write tickets.jsonl: support tickets, the decision that the shop's policy asks for, and the rule it follows from.

python examples/support_rules/make_tickets.py          # 600 tickets, the same ones every time
python examples/support_rules/make_tickets.py --n 2600 --seed 7 --worded --out FILE    # questions in four wordings
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

WORDINGS = (
    "{goods}, {price} EUR, {days} days ago: {state}",
    "{days} days ago I bought this {goods} for {price} EUR, {state}. What can you do?",
    "Order of {days} days ago. Item: {goods}. Paid: {price} EUR. Note: {state}.",
    "Hello, {state}. It is the {goods} that cost {price} EUR, ordered {days} days ago.",
)


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


def ticket(rng: random.Random, worded: bool = False) -> dict[str, str]:
    goods, price, state = rng.choice(GOODS), rng.randrange(10, 100, 10), rng.choice(list(STATES))
    days = rng.randint(1, 30) if rng.random() < 0.6 else rng.randint(31, 500)
    rule, decision = decide(goods, price, days, state)
    facts = {"goods": goods, "price": price, "days": days, "state": rng.choice(STATES[state])}
    question = (rng.choice(WORDINGS) if worded else WORDINGS[0]).format(**facts)
    return {"question": question, "answer": f"{rule} {decision}", "rule": POLICY[rule]}


def tickets(n: int, seed: int, worded: bool = False) -> list[dict[str, str]]:
    """n tickets, no two alike; with `worded` in one of WORDINGS each."""
    rng, made = random.Random(seed), {}
    while len(made) < n:
        row = ticket(rng, worded)
        made[row["question"]] = row
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worded", action="store_true", help="questions in four wordings")
    parser.add_argument("--out", default=Path(__file__).with_name("tickets.jsonl"))
    args = parser.parse_args()
    Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in tickets(args.n, args.seed, args.worded)))


if __name__ == "__main__":
    main()
