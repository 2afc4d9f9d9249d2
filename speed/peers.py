"""transformers and TRL, where they are installed: our model and tokenizer as theirs, and none of their output."""

import contextlib
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator

import tiktoken
import torch

import tasks
from model import Transformer
from published import weights
from speed.workload import Skipped


def peers(*names: str) -> list:
    """The named packages, imported, offline and quiet."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise Skipped("not installed: pip install -r requirements/bench.txt") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, progress bars or warnings of a peer among ours."""
    lost = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(lost), contextlib.redirect_stderr(lost):
        warnings.simplefilter("ignore")
        yield


def to_transformers(model: Transformer):
    """A transformers model of the same weights, by way of the folder that an export writes."""
    transformers, _ = peers("transformers", "safetensors")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        weights.save(model, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return theirs.to(model.embed.weight.device).eval()


def wide_tokenizer(n_vocab: int) -> tiktoken.Encoding:
    """Our tokenizer with a name for each of n_vocab tokens; no text is encoded as one of those added."""
    own, names = tasks.TOKENIZER, filler_names(n_vocab)
    ranks = {**tasks.RANKS, **{name.encode(): i for name, i in names.items()}}
    return tiktoken.Encoding("wide", pat_str=own._pat_str, mergeable_ranks=ranks, special_tokens=tasks.SPECIAL)


def filler_names(n_vocab: int) -> dict[str, int]:
    return {f"<{i}>": i for i in range(tasks.TOKENIZER.n_vocab, n_vocab)}


def byte_tokenizer(n_vocab: int = 0):
    """Our tokenizer for transformers: the same id for every byte and role, and names as `wide_tokenizer` has them."""
    transformers, tokenizers = peers("transformers", "tokenizers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {letter: byte for byte, letter in bytes_to_unicode().items()} | {"##": 256, "####": 257}
    vocab |= {role: tasks.TOKENIZER.encode_single_token(role) for role in tasks.ROLES} | filler_names(n_vocab)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tasks.ROLES))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|reference|>", padding_side="left"
    )
