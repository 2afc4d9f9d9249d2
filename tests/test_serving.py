"""A trained model serves as it was trained: transformers, with what an export holds and nothing else, asks alike."""

import json
import re
import shlex
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noted import noted
from small_runs import again, refused
from test_pretrained import SPECIALS, edit, published, templated, transformers  # skipped where that is

import sample as program
import tasks
import train
from config import Config
from harness import look
from harness.options import INIT_FILES, fingerprint_of
from model import Samples, sample
from published.chat import TELL, chat, served
from published.chat_template import worded
from published.tokenizer import load_tokenizer
from published.weights import load
from sources.jsonl import load_problems
from support.errors import UserError, visible
from verifiers import from_file

pytestmark = pytest.mark.usefixtures("own_signals", "own_format")

# Of the shape of the published ones: what each does with a system turn, its user's text, thoughts and the day.
SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}

{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GPT2 = "{% for m in messages %}{% if loop.index0 > 5 %}{% break %}{% endif %}[{{ m.role }}] {{ m.content.rstrip() }}"
GPT2 += "{{ eos_token }}{{ {'é': m.role} | tojson }}{% endfor %}"
SHAPES = {  # tokenizer, template in tokenizer_config.json, and in a file of its own
    "smollm2": ("smollm2", SMOLLM2),
    "qwen2.5": ("qwen", QWEN25),
    "qwen3": ("qwen", QWEN3),
    "llama3": ("llama3", LLAMA32),
    "gpt2": ("gpt2", GPT2),
    "begins with white space": ("qwen", "\n\n  {% if true %}  \n" + SMOLLM2 + "{% endif %}\n\n"),
    "one of several": ("smollm2", [{"name": "tools", "template": "no"}, {"name": "default", "template": SMOLLM2}]),
    "a file goes first": ("qwen", "not this", QWEN3),
    "no template, qwen": ("qwen", None),
    "no template, llama3": ("llama3", None),
    "no template, plain": ("gpt2", None),
}
shaped = lambda folder, shape: templated(folder, *SHAPES[shape])
WORDS = {
    "as it comes": {},
    "no instruction": {"instruction": ""},
    "both": {"instruction": 'Reply with JSON, like {"a": "1"}. <|im_end|>', "system": "You sort e-mails.\nBriefly."},
    "thoughts": {"thinking": "on"},
    "no thoughts": {"thinking": "off", "instruction": "Answer with '%}' \\n or \"{{ x }}\" 日本語 😀"},
}


def exported(made, source, out):
    """The folder's tokenizer as transformers has it after an export."""
    out.mkdir()
    for name, content in {"tokenizer.json": (source / "tokenizer.json").read_bytes(), **served(made, source)}.items():
        (out / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(out)


def turns(question, system=""):
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": question}]


def ids(theirs, conversation, **how):
    return theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False, **how)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_question_alone_makes_the_prompt_of_training(tmp_path, shape, words):
    """From the export by the question, from the published folder by all that the run said: the same tokens."""
    config = Config(**WORDS[words], date="2026-01-31")
    source = shaped(tmp_path, shape)
    tasks.FORMAT = chat(load_tokenizer(source), config)
    theirs = exported(tasks.FORMAT, source, tmp_path / "out")
    published = transformers.AutoTokenizer.from_pretrained(source)
    asks = f"\n\n{config.instruction}" if config.instruction else ""
    how = {} if config.thinking == "default" else {"enable_thinking": config.thinking == "on"}
    for question in ("What is 3+4?", "  12 + 3 \n", "{{ bos_token }} {% endif %}", "e\u0301 日本語", "\n\t x"):
        prompt = tasks.student_prompt(tasks.Problem(question, "7"))
        assert prompt == ids(theirs, turns(question))
        if published.chat_template:
            assert prompt == ids(published, turns(question + asks, config.system), date_string="31 Jan 2026", **how)
        told = question + TELL.format(privileged="7")
        assert tasks.teacher_prompt(tasks.Problem(question, "7")) == ids(theirs, turns(told))
    assert tasks.FORMAT.end == theirs.convert_tokens_to_ids(SPECIALS[SHAPES[shape][0]][-1])


def test_what_the_caller_says_goes_first(tmp_path):
    """A system turn, the thinking switch and a day of the caller's; an instruction stands in every user's turn."""
    config = Config(instruction="Be brief.", system="You are A.", thinking="off", date="2026-01-31")
    source = shaped(tmp_path, "qwen3")
    theirs = exported(chat(load_tokenizer(source), config), source, tmp_path / "out")
    text = lambda conversation, **how: theirs.apply_chat_template(conversation, tokenize=False, **how)
    assert text(turns("x", "You are B.")).count("You are") == 1 and "You are B." in text(turns("x", "You are B."))
    assert "<think>" in text(turns("x"), add_generation_prompt=True)
    assert "<think>" not in text(turns("x"), add_generation_prompt=True, enable_thinking=True)
    said = [*turns("one"), {"role": "assistant", "content": "1"}, *turns("two")]
    assert text(said).count("Be brief.") == 2 and "one\n\nBe brief.<|im_end|>" in text(said)
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    loop = "{% for m in messages[0].content %}[{{ m.text }}]{% endfor %}"
    theirs.chat_template = worded(loop, "Be brief.", "", "default", {})
    assert text(parts) == "[x][\n\nBe brief.]"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_text_of_the_user_breaks_out_of_the_template(instruction, system, question):
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    env = Environment(trim_blocks=True, lstrip_blocks=True)
    loop = "{% for m in messages %}<{{ m.role }}|{{ m.content }}>{% endfor %}"
    template = worded(loop, instruction, system, "on", {})
    asks = f"\n\n{instruction}" if instruction else ""
    expected = f"<system|{system}>" * bool(system) + f"<user|{question}{asks}>"
    assert env.from_string(template).render(messages=turns(question)) == expected


def test_an_export_is_trained_again_without_its_own_words(tmp_path):
    source = shaped(tmp_path, "qwen2.5")
    first = chat(load_tokenizer(source), Config(instruction="One.", system="Two."))
    exported(first, source, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert chat(again, Config(instruction="One.", system="Two.")).template == first.template
    other = chat(again, Config(instruction="Three.")).template
    assert "Three." in other and "One." not in other and "Two." not in other


def test_the_day_of_a_run_is_today(tmp_path):
    today = chat(load_tokenizer(shaped(tmp_path, "llama3")), Config())
    assert date.today().strftime("%d %b %Y") in today.template


def test_a_base_models_template_ends_a_turn_with_its_own_token(tmp_path):
    source = templated(tmp_path, *SHAPES["qwen2.5"], eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(source)
    assert chat(tokenizer).end == tokenizer.encode_single_token("<|im_end|>")


def test_what_stands_in_for_a_template_is_said(tmp_path):
    called = {"qwen": "ChatML", "llama3": "the format of Llama 3", "plain": "the plain text of the conversation"}
    for shape, said in called.items():
        note = chat(load_tokenizer(shaped(tmp_path, f"no template, {shape}"))).note
        assert note == f"no chat template there: {said} is used"
    assert chat(load_tokenizer(shaped(tmp_path, "qwen2.5"))).note == ""
    for begins in (True, False):  # with a token of its own, where the folder says so
        plain = chat(load_tokenizer(templated(tmp_path, "gpt2", None, add_bos_token=begins)))
        assert (plain.prompt("x", None)[0] == plain.tokenizer.encode_single_token(SPECIALS["gpt2"][0])) == begins


# ---- a run -----------------------------------------------------------------------------------------------------------

MAIL = {"answer": '{"to": "post"}'}
DATA = [{"question": f"Sort: parcel {i} is late", **MAIL, "why": f"late is post {i}"} for i in range(20)]
RULE = "def check(completion, answer):\n    return 1.0 if completion == answer else 0.25 * (len(completion) % 3)\n"


def model_folder(folder, family="qwen2", shape="qwen2.5", **said):
    published(folder, family, shape={"vocab_size": 950, "max_position_embeddings": 512})
    shaped(folder, shape)
    edit(folder / "config.json", **said)
    return folder


SMALL = "--privileged_key why --lr 1e-3 --max_seq_len 200 --max_new_tokens 24 --prompts_per_step 2 --group_size 4 "
SMALL += "--eval_problems 2 --eval_every 1"


def options(folder, init, name, *more):
    (folder / "mails.jsonl").write_text("\n".join(map(json.dumps, DATA)))
    (folder / "rule.py").write_text(RULE)
    given = f"--init {init} --data {folder}/mails.jsonl --verifier {folder}/rule.py:check {SMALL}"
    return [*given.split(), "--out", str(folder / name), "--warm_dir", str(folder / "warm"), *more]


JSON = ("--instruction", "Reply with JSON.", "--system", "You sort e-mails.", "--marker", "")


@pytest.mark.parametrize(
    "family, shape, more",
    [("qwen2", "qwen2.5", JSON), ("qwen3", "qwen3", ("--thinking", "off")), ("llama 3.1", "llama3", JSON)],
)
def test_the_exported_folder_answers_in_transformers_as_here(tmp_path, capsys, family, shape, more):
    """The prompts of training by apply_chat_template alone, and greedily the same tokens, up to the same end."""
    init = model_folder(tmp_path / "m", family, shape)
    warm = "--steps 1 --warm_steps 60 --warm_batch 4 --warm_lr 3e-3"
    assert train.main(options(tmp_path, init, "run", *warm.split(), *more)) == 0
    printed = capsys.readouterr().out
    assert "the student's prompt" in printed and "the teacher's prompt" in printed
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", dtype=torch.float32).eval()
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model"), load(tmp_path / "run/model")
    lengths = set()
    for row in DATA[:4]:
        prompt = tasks.student_prompt(tasks.Problem(row["question"], row["answer"]))
        how = {"return_tensors": "pt", "return_dict": True}
        asked = theirs.apply_chat_template(turns(row["question"]), add_generation_prompt=True, **how)
        assert asked["input_ids"][0].tolist() == prompt
        answer = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        how = {"group_size": 1, "max_new_tokens": 24, "temperature": 0.0, "stop_token": tasks.FORMAT.ends}
        (own,) = sample(ours, [prompt], **how).completions()
        assert own == answer
        lengths.add(len(own))
        assert program.main([str(tmp_path / "run/model"), row["question"]]) == 0  # sample.py, by the folder alone
        assert capsys.readouterr().out == f"{visible(tasks.decode(own))}\n"
        whole = lambda text: re.sub("\ufffd+", "?", text)  # bytes that are no UTF-8: a few signs more, or fewer
        assert whole(theirs.decode(answer, skip_special_tokens=True)) == whole(tasks.decode(own))
    assert min(lengths) < 24  # some have ended by themselves, there as here


def test_a_folder_that_cannot_be_asked_is_one_line(tmp_path, capsys, monkeypatch):
    init = model_folder(tmp_path / "m")
    assert program.main([str(init)]) == 2 and "ask it a QUESTION" in capsys.readouterr().err
    assert program.main([str(init), "why " * 999]) == 2 and "exceed max_seq_len" in capsys.readouterr().err
    for more in (["--html", "p.html"], ["--answer", "4"], ["--seed", "3"], ["--verifier", "number"]):
        assert program.main([str(init), "What?", *more]) == 2
        assert "without teacher and verifier" in capsys.readouterr().err
    given = iter(["Who?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))
    assert program.main([str(init), "--interactive"]) == 0 and len(capsys.readouterr().out) > 1


def test_a_run_keeps_its_words(tmp_path, capsys):
    init = model_folder(tmp_path / "m")
    argv = options(tmp_path, init, "run", "--steps", "1", *JSON[:4])
    assert train.main(argv) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["instruction"], config["system"], config["date"]) == (JSON[1], JSON[3], date.today().isoformat())
    go_on = again(tmp_path / "run", "--steps 2")
    refused(capsys, [*go_on, "--instruction", "Another."], "--instruction Another. contradicts")
    older = fingerprint_of(Config(**{k: v for k, v in config.items() if k != "fingerprint"}), INIT_FILES[:2])
    assert older != config["fingerprint"]
    edit(tmp_path / "run/config.json", fingerprint=older)  # a run that knew of fewer files goes on
    assert train.main(go_on) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["fingerprint"] == config["fingerprint"]
    edit(init / "tokenizer_config.json", chat_template=SMOLLM2)
    refused(capsys, [*go_on[:-1], "3"], "has changed since")


def test_any_end_that_the_folder_names_ends_a_completion(tmp_path):
    init = model_folder(tmp_path / "m", eos_token_id=[7, 1])
    (init / "generation_config.json").write_text(json.dumps({"eos_token_id": [9], "temperature": 0.5}))
    tokenizer = load_tokenizer(init)
    tasks.FORMAT = chat(tokenizer)
    assert set(tasks.FORMAT.ends) == {tokenizer.encode_single_token("<|im_end|>"), 7, 1, 9}
    start = tokenizer.encode_single_token("<|im_start|>")
    for end in tasks.FORMAT.ends:
        assert tasks.decode([*tasks.encode("ab"), start, *tasks.encode("c"), end, *tasks.encode("d")]) == "abc"
    kept = json.loads(served(tasks.FORMAT, init)["generation_config.json"])
    assert set(kept["eos_token_id"]) == set(tasks.FORMAT.ends) and kept["temperature"] == 0.5
    edit(init / "config.json", eos_token_id="x")
    with pytest.raises(UserError, match="eos_token_id 'x' is no token id"):
        load_tokenizer(init)


# ---- look before you train -------------------------------------------------------------------------------------------


def test_a_look_shows_what_a_run_would_do_and_does_nothing(tmp_path, capsys):
    init = model_folder(tmp_path / "m")
    argv = options(tmp_path, init, "run", "--look", "2", *JSON[:4])
    before = sorted(tmp_path.rglob("*"))
    assert train.main(argv) == 0
    printed = capsys.readouterr().out
    assert "problems: 18 to train on, 2 held out" in printed
    assert f"\nsystem: {JSON[3]!r}\ninstruction: {JSON[1]!r}\n\nproblem 1 of 2, " in printed
    assert printed.count("\nthe student's prompt") == printed.count("\nthe teacher's prompt") == 2
    assert printed.count("  | <|im_start|>system\n  | You sort e-mails.<|im_end|>\n") == 4
    assert printed.count("Reference, for your eyes alone: late is post") == 2
    assert printed.count("completion of ") == printed.count("the verifier read ") == printed.count(": reward ") == 8
    assert "no step of the warm start" not in printed
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_look_at_a_model_of_our_own(tmp_path, capsys, monkeypatch):
    """Each problem's completions have noise of their own."""
    seeds = noted(monkeypatch, look, "sampling", lambda *_, seed: seed)
    monkeypatch.chdir(tmp_path)
    assert train.main("--look 2 --eval_problems 3 --hidden_size 32 --num_layers 1 --warm_steps 0".split()) == 0
    printed = capsys.readouterr().out
    assert "  | <|user|>" in printed and "weights are random\n" in printed and not list(tmp_path.iterdir())
    assert len(set(seeds)) == 2 and printed.count("completion of ") == 8  # four each, whatever --group_size


def test_a_look_leaves_a_runs_folder_alone_and_says_what_it_looks_at(tmp_path, capsys, monkeypatch):
    """Where the verifier fails, a run would write that down. Of what is long the beginning is shown, or both ends."""
    config = Config(init="m", warm_steps=5, group_size=2, look=1, out=str(tmp_path), on_verifier_error="drop")
    source = SimpleNamespace(draw=lambda rng, n: [tasks.Problem("?", "9" * 5000)] * n)
    monkeypatch.setattr(look, "sample", lambda *args, **how: Samples.of([[97, 98, tasks.END], [97] * 4000]))
    look.look(None, source, lambda completion, answer: 1 / 0, config)
    printed, half = capsys.readouterr().out, "a" * 1500
    assert "completion of 3 tokens:\n  | ab" in printed and max(map(len, printed.splitlines())) < 3100
    cut = f"completion of 4000 tokens, cut off by --max_new_tokens {config.max_new_tokens}:\n  | {half}\n"
    assert f"{cut}  | [1000 characters left out]\n  | {half}\n  the verifier read '{half}{half}'" in printed
    assert printed.count("no reward: ") == 2 and "the folder's\n" in printed and not list(tmp_path.iterdir())


def test_the_marker_of_the_targets_is_the_runs(tmp_path):
    init = model_folder(tmp_path / "m")
    problem = tasks.Problem("?", "7", "3+4")
    for marker, text in {"####": "3+4\n#### 7", "": "3+4\n7", "So:": "3+4\nSo: 7"}.items():
        tasks.FORMAT = chat(load_tokenizer(init))
        tasks.FORMAT.marker = marker and f"{marker} "
        assert tasks.decode(tasks.target(problem)) == text


# ---- make llm --------------------------------------------------------------------------------------------------------


def inside(*options):
    """llm.train, in this process."""
    print(f"$ python train.py {shlex.join(options)}")
    if code := train.main(list(options)):
        raise SystemExit(code)


@pytest.fixture
def make_llm(tmp_path, monkeypatch):
    """The program and its options for a small run."""
    monkeypatch.syspath_prepend(Path(train.__file__).parent / "examples/support_rules")
    import llm

    small = "--warm_steps 2 --eval_problems 4 --eval_every 1 --prompts_per_step 2 --group_size 2 --max_new_tokens 40 "
    small += "--max_seq_len 400"  # the test's tokenizer makes more tokens than published ones
    paths = ["--out", str(tmp_path / "run"), "--warm_dir", str(tmp_path / "warm")]
    return llm, [str(model_folder(tmp_path / "m")), *paths, *small.split()]


def test_make_llm_trains_shows_the_same_tickets_before_and_after_and_goes_on(tmp_path, capfd, monkeypatch, make_llm):
    llm, argv = make_llm
    assert llm.main([*argv, "--steps", "1"]) == 0
    out, _ = capfd.readouterr()
    commands = [line for line in out.splitlines() if line.startswith("$ python train.py")]
    assert [" --steps 0" in line for line in commands] == [True, False] and "--resume" in commands[1]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert f"{rows[0]['pass@1']:.3f} before RL" in out and f"{rows[1]['pass@1']:.3f} after 1 updates" in out
    before = json.loads((tmp_path / "run/before.json").read_text())
    assert len(before) == 3 and all(out.count(row["question"]) == 1 for row in before)
    model, config = program.load_folder(tmp_path / "run/model")
    told = [visible(program.answer(model, config, row["question"]).strip()) for row in before]
    assert all(f"  after:  {text}\n" in out for text in told)
    monkeypatch.setattr(llm, "train", inside)
    before[2]["answer"] = "said before"
    (tmp_path / "run/before.json").write_text(json.dumps(before))
    assert llm.main([*argv, "--steps", "2"]) == 0  # goes on, and remembers what it answered before
    out, _ = capfd.readouterr()
    assert "after 2 updates" in out and out.count("$ python train.py") == out.count("  before: said before\n") == 1
    assert json.loads((tmp_path / "run/before.json").read_text()) == before
    for more, said in (("--method grpo", "contradicts"), ("--look 1", "goes on by itself"), ("--steps 1", "made 2")):
        assert llm.main([*argv, "--steps", "2", *more.split()]) == 2
        assert re.match(rf"(llm|train)\.py: .*{said}", capfd.readouterr().err), more
    (tmp_path / "run/before.json").unlink()
    assert llm.main([*argv, "--steps", "2"]) == 2 and "--steps 0" in capfd.readouterr().err
    assert llm.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 2


def test_make_llm_killed_before_its_first_export_was_whole_goes_on(tmp_path, capfd, monkeypatch, make_llm):
    llm, argv = make_llm
    monkeypatch.setattr(llm, "train", inside)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(llm, "answers", lambda *args: 1 / 0)
        llm.main([*argv, "--steps", "0"])
    (tmp_path / "run/model/model.safetensors").unlink()
    assert llm.main([*argv, "--steps", "0"]) == 0 and "before RL" in capfd.readouterr().out


# ---- the page --------------------------------------------------------------------------------------------------------


def test_what_the_page_shows_works(tmp_path, monkeypatch, capsys):
    """From its data and its verifier through a look and a run to an answer of transformers, as a reader types it."""
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "FOLDER")
    page = (Path(__file__).parent.parent / "docs" / "own_model.md").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)
    lines, rule, look, more = (text for _, text in blocks[:4])
    (tmp_path / "mails.jsonl").write_text(lines)
    (tmp_path / "my_rules.py").write_text(rule)
    problems = load_problems(str(tmp_path / "mails.jsonl"), "rule")
    check = from_file(str(tmp_path / "my_rules.py"), "check")
    assert [check(p.answer, p.answer) for p in problems] == [1.0, 1.0] and problems[0].privileged == "broken: repair"
    assert check(problems[0].answer, problems[1].answer) == check("[1]", problems[0].answer) == check("", "{}") == 0.0
    argv = shlex.split(look.replace("\\\n", " "))[2:]
    room = ["--max_new_tokens", "60", "--max_seq_len", "400"]  # the test's tokenizer makes more tokens than others
    assert train.main([*argv, *room]) == 0 and "problem 2 of 2" in capsys.readouterr().out and not Path("runs").exists()
    assert train.main([*argv[:-2], *shlex.split(more), "--steps", "1", *room]) == 0
    capsys.readouterr()
    exec(blocks[4][1], {})  # the page's own lines, which serve what was trained
    assert capsys.readouterr().out.endswith("\n")
    assert program.main(["runs/mails/model", "..."]) == 0
    assert program.main(["runs/mails", "I paid twice! Hurry!", "--verifier", "my_rules.py:check"]) == 0
    assert "reference answer" in capsys.readouterr().out
    assert train.main([*argv[:-2], "--steps", "0", "--out", "runs/warm", *room]) == 0
    assert "warm start: found" in capsys.readouterr().out  # the run's own
    assert program.main(["runs/warm/model", "I paid twice! Hurry!"]) == 0
    assert Config().instruction in page and all(f"`--{name} " in page for name in ("instruction", "system", "thinking"))
