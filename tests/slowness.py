"""How slow is this machine? Limits in seconds are set where they were tried, and hold as well where all is slower."""

import time

HERE = 0.008  # seconds that the loop below took there, 2 cores of a Xeon, Python 3.11


def loop() -> float:
    began, total = time.process_time(), 0
    for i in range(200_000):
        total += i * i % 7
    return time.process_time() - began


def patience(seconds: float) -> float:
    """The same limit in processor seconds on this machine: never less, more where it is slower at this moment."""
    return seconds * max(1.0, sorted(loop() for _ in range(5))[2] / HERE)
