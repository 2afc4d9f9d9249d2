"""Folders for --init: torn weights, configurations and tokenizers edited at any place, vocabularies with holes."""

import contextlib
import copy
import itertools
import json
import math
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused import TRIED, Evil, refused

import tasks
import train
from model import ModelConfig, Transformer
from published.chat import chat
from published.tokenizer import build_tokenizer, byte_characters, load_tokenizer
from published.weights import load, read_config, read_weights, save
from support.errors import UserError, reading

ODD = (None, True, False, -1, 0, 1, 7, 10**9, 10**30, 0.5, math.nan, math.inf, "", "x", "{question}", [], {}, [[]], [1])


def tokenizer(first: int = 0) -> dict:
    """A byte-level BPE whose ids begin at `first` and leave out every hundredth."""
    ids = (i for i in range(first, 10**6) if i % 100 != 50)
    vocab = {c: next(ids) for c in byte_characters().values()} | {"##": next(ids), "####": next(ids)}
    vocab |= {c: next(ids) for c in ("<|im_start|>", "<|im_end|>")}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": ["# #", ["##", "##"]]},
        "added_tokens": [{"content": c, "id": vocab[c]} for c in ("<|im_start|>", "<|im_end|>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }


def leaves(tree, path=()):
    """Every place in a JSON document, its own included; of long tables the first few entries."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:12]:
        yield from leaves(value, (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    tree = copy.copy(tree)
    tree[path[0]] = replaced(tree[path[0]], path[1:], value)
    return tree


PLACES = list(leaves(tokenizer()))


@given(st.sampled_from(PLACES), st.sampled_from(ODD))
def test_a_tokenizer_edited_anywhere_works_or_is_refused(tmp_path_factory, path, value):
    folder = tmp_path_factory.getbasetemp()
    (folder / "tokenizer.json").write_text(json.dumps(replaced(tokenizer(), path, value)))
    TRIED["tokenizers, fuzzed"] += 1
    try:
        t = load_tokenizer(folder)
    except UserError as error:
        assert "\n" not in str(error) and "tokenizer.json" in str(error)
        return
    try:
        tokens = t.encode_ordinary("12 + 3 = é ####")
    except ValueError as error:
        assert "tokenizer" in str(error)
        return
    assert isinstance(t.decode(tokens), str) and isinstance(t.decode([0, 10**6]), str)


def test_tiktoken_panics_at_no_tokenizer(tmp_path, capfd):
    """A panic prints lines of Rust's, whoever catches it: what it would panic at is refused before."""
    for path, value in itertools.product(PLACES, ODD):
        TRIED["tokenizers, edited"] += 1
        with contextlib.suppress(UserError), reading("tokenizer.json"):
            build_tokenizer(replaced(tokenizer(), path, value), tmp_path / "tokenizer.json")
    assert capfd.readouterr().err == ""


def test_merges_that_would_take_too_long_are_refused(monkeypatch):
    """By the squared lengths of the tokens, here of 2 and of 4 bytes."""
    for most in (20, 19):
        monkeypatch.setattr("published.tokenizer.MOST_MERGING", most)
        with pytest.raises(UserError, match="as long as 4 bytes") if most < 20 else contextlib.nullcontext():
            build_tokenizer(tokenizer(), Path("tokenizer.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"7", b"{}", b"\xff", b"[" * 100_000, b'{"model": 1}'])
def test_a_tokenizer_that_is_none(tmp_path, capsys, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    refused(capsys, train.main, ["--init", tmp_path], "tokenizer.json", kind="tokenizers")


def test_a_special_token_inside_another_is_split_alike_in_every_process():
    """Their names come as a set, whose order changes with PYTHONHASHSEED: the longer one comes first."""
    t = tokenizer()
    t["model"]["vocab"]["<|im_start|>user"] = 400
    t["added_tokens"].append({"content": "<|im_start|>user", "id": 400})
    made = build_tokenizer(t, Path("tokenizer.json"))
    for order in (sorted(made.special_tokens_set), sorted(made.special_tokens_set, reverse=True)):
        made.special_tokens_set = dict.fromkeys(order)
        assert chat(made).prompt("a", "")[0] == 400
    TRIED["tokenizers"] += 1


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("published")
    config = ModelConfig(vocab_size=300, hidden_size=32, intermediate_size=32, num_layers=1, max_seq_len=512)
    torch.manual_seed(0)
    save(Transformer(config), folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return folder


@pytest.fixture
def folder(published, tmp_path):
    yield shutil.copytree(published, tmp_path / "model")
    tasks.FORMAT = tasks.BYTES


def init(folder):
    options = "--max_seq_len 400 --max_new_tokens 40 --steps 1 --prompts_per_step 1 --group_size 2 --eval_problems 1"
    return [*options.split(), "--init", folder, "--out", folder.parent / "run"]


def unread(folder, *words):
    """What --init says of a folder's weights, without the program around it."""
    TRIED["models"] += 1
    with pytest.raises(UserError) as error:
        load(folder)
    said = str(error.value)
    assert "\n" not in said and str(folder) in said and all(word in said for word in words), said


def test_a_vocabulary_with_holes_is_trained(folder):
    """Ids that no token has, between others and above them, may be sampled: they are read as U+FFFD."""
    assert train.main([str(a) for a in init(folder)]) == 0
    assert tasks.FORMAT.tokenizer.decode([50, 299]) == "\ufffd\ufffd"
    TRIED["models"] += 1


def test_weights_torn_at_every_twentieth(folder, capsys):
    whole = (folder / "model.safetensors").read_bytes()
    for i in range(20):
        (folder / "model.safetensors").write_bytes(whole[: i * len(whole) // 20])
        unread(folder, "model.safetensors")
    refused(capsys, train.main, init(folder), "model.safetensors", kind="torn checkpoints")
    assert not (folder.parent / "run").exists()


def test_weights_that_are_something_else(folder, tmp_path, capsys):
    path = folder / "model.safetensors"
    sound = {name: x.clone() for name, x in read_weights(folder).items()}  # not the file's own bytes
    for content in (pickle.dumps(Evil(tmp_path / "pwned")), b"\xff" * 1000, b"\x08" + b"\0" * 7 + b"{" * 8):
        path.write_bytes(content)
        refused(capsys, train.main, init(folder), "model.safetensors", kind="pickles")
    assert not (tmp_path / "pwned").exists()
    from safetensors.torch import save_file

    down = "model.layers.0.mlp.down_proj.weight"
    for name, x, said in (
        ("model.norm.weight", torch.full((32,), math.nan), "model.norm.weight"),
        ("model.norm.weight", torch.ones(7), "model.norm.weight has the shape (7,)"),
        ("model.norm.weight", torch.ones(32, dtype=torch.int64), "model.norm.weight"),
        ("model.norm.weight", torch.ones(32, dtype=torch.complex64), "model.norm.weight"),
        (down, None, f"lack {down}"),
        ("x", torch.ones(1), "hold x"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(3), "hold model.layers.0.self_attn.q_proj.bias"),
    ):
        weights = {**sound, name: x}
        save_file({name: x for name, x in weights.items() if x is not None}, path)
        unread(folder, said)
    refused(capsys, train.main, init(folder), said, kind="models")
    path.unlink()
    for index in ({}, {"weight_map": 7}, {"weight_map": {}}, {"weight_map": {"a": 7}}, {"weight_map": {"a": "../x"}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        unread(folder)


def test_a_model_config_edited_anywhere_is_refused_or_harmless(folder, capsys):
    """Every entry replaced by odd values: refused before anything of that size is made, or the run is as before."""
    sound = json.loads((folder / "config.json").read_text())
    rng = random.Random(0)
    edited = [replaced(sound, path, value) for path in leaves(sound) for value in rng.sample(ODD, 8)]
    for config in edited + [{k: v for k, v in sound.items() if k != name} for name in sound]:
        (folder / "config.json").write_text(json.dumps(config))
        TRIED["models"] += 1
        try:
            model = load(folder)
        except UserError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            continue
        with torch.no_grad():
            assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 300)


MISTYPED = [
    ("rope_theta", True, "1e6", 0, -1e4, [1e6], math.inf, math.nan, 10**400),
    ("rms_norm_eps", True, "1e-5", 0, {}, math.inf),
    ("tie_word_embeddings", "true", 1, 0, []),
    ("head_dim", False, "16", 0, 16.0, {}),
    ("num_key_value_heads", False, 0, "2", [2]),
    ("num_attention_heads", True, "4", [4], 4.0, 0),
    ("max_position_embeddings", False, 0, "512", {"a": 512}),
    ("hidden_size", "32", 32.0, [32], None),
    ("vocab_size", {"text": 300}, 10**30),
    ("num_hidden_layers", True, 10**6),
    ("rope_scaling", "linear", [1], 7, False),
    ("rope_parameters", "default", [1], 7, {"rope_theta": True}, {"rope_theta": "1e6"}, {"rope_type": ["default"]}),
    ("layer_types", "full_attention", 7, {"full_attention": 1}, [["full_attention"]]),
    ("model_type", ["llama"], {}, None),
    ("quantization_config", {"bits": 4}, "int8", 8),
]


@pytest.mark.parametrize("name, values", [(name, values) for name, *values in MISTYPED])
def test_an_entry_of_another_type_is_refused_by_name(folder, name, values):
    sound = json.loads((folder / "config.json").read_text())
    for value in values:
        (folder / "config.json").write_text(json.dumps({**sound, "rope_parameters": None, name: value}))
        named = list(value)[0] if name == "rope_parameters" and isinstance(value, dict) else name
        with pytest.raises(UserError) as error:
            read_config(folder)
        assert str(error.value).startswith(f"{folder}/config.json: ") and len(str(error.value)) < 300
        assert named.replace("_", " ") in str(error.value).replace("_", " "), value


NOTHING = [{"rms_norm_eps": 1}, {"rope_theta": 100}, {"quantization_config": {}}, {"quantization_config": None}]
NOTHING += [{"num_experts": 0}, {"layer_types": []}, {"rope_scaling": {}}]
NOTHING += [{"tie_word_embeddings": None, "attention_bias": None}]


@pytest.mark.parametrize("changes", NOTHING)
def test_what_changes_nothing_is_accepted(folder, changes):
    sound = json.loads((folder / "config.json").read_text())
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**sound, "rope_parameters": None, **changes}))
    read = read_config(folder)
    assert read.norm_eps == changes.get("rms_norm_eps", config.norm_eps) and type(read.norm_eps) is float
    assert read.rope_theta == changes.get("rope_theta", config.rope_theta) and type(read.rope_theta) is float
    assert read.tie_embeddings is ("tie_word_embeddings" not in changes)
