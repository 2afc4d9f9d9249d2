from support.errors import program

__all__ = ["program"]
