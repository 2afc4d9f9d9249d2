"""What a function is called with, while it does what it does."""


def noted(patch, owner, name, note) -> list:
    """What `note` makes of the arguments of each call, in a list that grows."""
    seen, original = [], getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: seen.append(note(*args, **named)) or original(*args, **named))
    return seen
