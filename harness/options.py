from config import *
from config import FILES, config_of, fingerprint_of

__all__ = ["config_of", "fingerprint_of", "FILES", "parse_config"]
