"""Options of every program: out of range, of another type, unknown, contradictory; folders with odd names."""

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ours import ours
from refused import ROOT, TINY, TRIED, contents, refused

import bench
import reproduce
import sample
import train
from config import Config
from harness.options import CHANGEABLE, USED_BY, check_values, fingerprint_of, parse_config
from study import probe
from support.errors import UserError, one_line

NO_INT = ("", "x", "1.5", "nan", "inf", "1e3", "0x10", "--", "9" * 5000)
NO_FLOAT = ("", "x", "nan", "inf", "-inf", "1e400", "-1e300", "1,5", "0x1p3")
FIELDS = {f.name: f for f in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_refuses_what_it_cannot_be(tmp_path, capsys, name):
    f = FIELDS[name]
    bad = {int: NO_INT, float: NO_FLOAT, str: ("ppo", "") if f.metadata["choices"] else (), bool: ("=yes",)}[f.type]
    beyond = [f.metadata[k] + d for k, d in (("low", -1), ("high", 1)) if f.metadata[k] is not None]
    for value in (*bad, *beyond):
        given = f"--{name}{value if f.type is bool else f'={value}'}"
        refused(capsys, train.main, [*TINY, given], name, kind="options")
    no_choice = bad[:1] if f.metadata["choices"] else ()
    for value in (7 if f.type is str else "1", *beyond, *no_choice):  # in a config.json
        with pytest.raises(UserError, match=f"^--{name} "):
            check_values(Config(**{name: value}))
    if f.type is int:  # may there be none? only if that is the default, or --help says what it means
        assert f.metadata["high"] is not None
        said = re.search(r"\b0(:| keeps)", f.metadata["help"])
        assert (f.metadata["low"] < 1) == (f.default < 1 or said is not None)
    refused(capsys, train.main, [*TINY, f"--{name}_"], f"--{name}_", kind="options")


def test_a_gpu_that_is_there_and_a_reward_of_zero_can_be_asked_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = parse_config("--device cuda --on_verifier_error zero".split())
    assert (config.device, config.on_verifier_error) == ("cuda", "zero")


TOGETHER = {
    "--method grpo --evidence agreement": "--method grpo",
    "--method sdpo --rlsd_lambda 0.5": "--method sdpo",
    "--warm_steps 0 --warm_cite 0.5": "--warm_cite has no use without a warm start",
    "--init nowhere --warm_steps 0 --warm_lr 1e-4": "--warm_lr has no use without a warm start",
    "--warm_slip 0.5 --data x.jsonl": "--warm_slip is for built-in tasks",
    "--method opd": "--opd_teacher",
    "--opd_teacher x": "--opd_teacher",
    "--method opd --opd_teacher nowhere": "--opd_teacher nowhere: nowhere holds no config.json",
    **{f"--data x.jsonl --{word}": "--data and --task" for word in ("task addition", "chain 2", "filler 2")},
    "--eval_data x.jsonl": "--eval_data holds problems out",
    **{f"--method rlsd --{name} 0.5": f"has no use for --{name}" for name in USED_BY},
    "--privileged_key k": "--privileged_key",
    "--data x.jsonl --privileged_key k --privileged answer": "--privileged_key",
    "--dtype bfloat16": "--dtype bfloat16",
    "--bf16": "--bf16",
    "--resume": "--resume needs --out",
    "--resume --out nowhere": "--resume needs --out",
    "--task addition,x=1": "addition,x=1",
    "--task reasoning_gym:": "reasoning_gym",
    "--task": "--task",
    "--task countdown --chain 1": "countdown has 2 to 12 numbers",
    "--task countdown --chain 20": "countdown has 2 to 12 numbers",
    "--chain 1 --eval_problems 45": "no more different ones left",
    "--chain 1 --eval_problems 500": "no more different ones left",
    "--chain 20": "--max_new_tokens",
    "--max_new_tokens 250": "--max_seq_len 256",
    "--verifier nothing": "nothing",
    "--verifier nothing.py:check": "there is no file",
    "--verifier .:check": "none of",
    "--verifier reasoning_gym:x": "reasoning_gym",
    "--step 3": "unrecognized arguments: --step 3",  # an option's whole name
    "--fsdp --warm_steps 0": "--fsdp needs torchrun",
    "--hidden_size 33": "--hidden_size 33",
    **{f"--task reasoning_gym:chain_sum --{name} 2": "--chain and --filler" for name in ("chain", "filler")},
    "--init x": "--hidden_size and --num_layers",
    "--chain 0 --eval_problems 1 --max_new_tokens 35": "--max_new_tokens 35",
    "--device cuda": "no CUDA device here",
    **{f"--{name} off": f"--{name} is for models of --init" for name in "instruction system thinking date".split()},
    "--init M --warm_steps 0 --marker ANSWER": "has no use without a warm start",
    **{f"--marker A --{reads}": "look for ####" for reads in ("rlsd_thought_only", "evidence contrastive")},
    "--export last": "--export is for models of --init",
    "extra": "extra",
    "--out\nx": "unrecognized",
}


@pytest.mark.parametrize("line", TOGETHER)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(capsys, train.main, [*TINY, *line.split(" ")], TOGETHER[line], kind="options")
    assert not contents(tmp_path)


def test_a_value_that_begins_with_a_minus_names_the_form_that_works(capsys):
    for name, f in FIELDS.items():
        for value in ("-x", "-my.jsonl", "--y", "-x=1") if f.type is not bool else ():
            with pytest.raises(UserError, match=re.escape(f"--{name}={value} (")):
                parse_config([f"--{name}", value])
            with contextlib.suppress(UserError):  # the form that is named reaches the option
                assert getattr(parse_config([f"--{name}={value}"]), name) == value
    refused(capsys, train.main, ["--out", "--steps", "5"], "--out: expected one argument (", kind="options")
    refused(capsys, bench.main, ["--out", "-x.json"], "--out=-x.json", kind="other programs")


def test_help_shows_every_option_in_one_of_the_groups(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = capsys.readouterr().out
    titles = re.findall(r"^([\w ]+):$", shown, re.MULTILINE)
    assert titles == ["options", "problems", "model", "warm start", "RL step", "RLSD", "other methods", "run"]
    assert re.findall(r"^  --(\w+)", shown[shown.index("\nproblems:") :], re.MULTILINE) == list(FIELDS)


# ---- programs --------------------------------------------------------------------------------------------------------

begins_work = Mock(side_effect=AssertionError("it begins to work"))
EVERYWHERE = ours("*.py", "docs/*.py", "study/*.py", "examples/**/*.py", "tests/**/*.py")
PROGRAMS = [
    p for p in EVERYWHERE if '\nif __name__ == "__main__":' in p.read_text() and p.stem not in ("child", "test_ends")
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_program_works_on_help_or_on_what_it_does_not_know(tmp_path, monkeypatch, capsys, path):
    """child.py is no program, the run starts it; test_ends.py only holds the text of one."""
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(train, "update", train.update)  # tests/recorded.py puts its own there
    monkeypatch.chdir(tmp_path)
    for begin in ("subprocess.Popen", "torch.manual_seed", "pytest.main", "os.fork"):
        monkeypatch.setattr(begin, begins_work)
    for argv, code in ((["--help"], 0), (["-h"], 0), (["--nonsense"], 2), (["--nonsense=1", "x", "y", "z"], 2)):
        monkeypatch.setattr(sys, "argv", [str(path), *argv])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        said = capsys.readouterr()
        assert (end.value.code, bool(said.out), bool(said.err)) == (code, code == 0, code == 2), said
        TRIED["other programs"] += code == 2
    assert not contents(tmp_path)


# ---- what a run is gone on with -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one update begun in its own folder: data, held-out data and verifier by relative paths."""
    home = tmp_path_factory.mktemp("home")
    (home / "my.jsonl").write_text("".join(f'{{"question": "{i}+1", "answer": "{i + 1}"}}\n' for i in range(9)))
    (home / "held.jsonl").write_text('{"question": "0+0", "answer": "0"}\n')
    (home / "rule.py").write_text("def exact(c, a):\n    return len(c) % 2 / 2\n\ndef other(c, a):\n    return 0.0\n")
    files = "--data my.jsonl --eval_data held.jsonl --verifier rule.py:exact --out run --warm_dir warm".split()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(home)
        assert train.main([*TINY, *files]) == 0
    return home


def test_a_run_goes_on_with_other_values_of_those_options_alone_that_may_change(tmp_path):
    config = Config(verifier="exact")
    written = {**vars(config), "fingerprint": fingerprint_of(config)}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "last.pt").touch()
    run = ["--resume", f"--out={tmp_path}"]
    for name in FIELDS.keys() - {"out", "resume", *CHANGEABLE}:
        f = FIELDS[name]
        word = next(x for x in f.metadata["choices"] or "x" if x != f.default)
        value = word if f.type is str else f.default + 1 if f.type is int else f.default / 2 or 0.5
        with pytest.raises(UserError, match=f"--{name} .*contradicts"):
            parse_config([*run, f"--{name}" if f.type is bool else f"--{name}={value}"])
    again = ["--verifier=exact", "--seed=0", "--rlsd_lambda=0.5", "--steps=7"]
    assert parse_config([*run, *again]) == dataclasses.replace(config, resume=True, out=str(tmp_path), steps=7)


def test_files_that_a_run_depends_on_are_found_by_their_content(finished, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "it's elsewhere"
    shutil.copytree(finished, elsewhere)
    (elsewhere / "changed.jsonl").write_text((elsewhere / "my.jsonl").read_text() + '{"question": "?", "answer": "!"}')
    (elsewhere / "changed.py").write_text((elsewhere / "rule.py").read_text() + "\n")
    monkeypatch.chdir(tmp_path)
    run = ["--resume", "--out", elsewhere / "run", "--steps", "2"]
    named = [*run, "--verifier", f"{elsewhere}/rule.py:exact"]
    data, held = ["--data", elsewhere / "my.jsonl"], ["--eval_data", elsewhere / "held.jsonl"]
    before = contents(elsewhere)
    for argv, words in (
        (named, ("--data my.jsonl is not found from here", "give --data")),
        ([*named, *data], ("--eval_data held.jsonl is not found from here",)),
        ([*run, *data, *held], ("add --verifier rule.py:exact",)),
        ([*run, *data, *held, "--verifier", "rule.py:exact"], ("--verifier rule.py is not found from here",)),
        ([*named, *data, "--eval_data", elsewhere / "my.jsonl"], ("has changed",)),
        ([*named, *held, "--data", elsewhere / "changed.jsonl"], ("has changed",)),
        ([*run, *data, *held, "--verifier", f"{elsewhere}/changed.py:exact"], ("has changed",)),
        ([*run, *data, *held, "--verifier", f"{elsewhere}/rule.py:other"], ("contradicts",)),
        ([*run, *data, *held, "--verifier", "exact"], ("contradicts",)),
        ([*named, *held, "--data", ""], ("contradicts",)),
    ):
        refused(capsys, train.main, argv, *words, kind="folders")
        assert contents(elsewhere) == before
    whole = [str(word) for word in (*named, *data, *held)]
    assert train.main(whole) == 0 and train.main([*whole[:3], "--steps", "3", *whole[5:]]) == 0
    assert sample.main([str(elsewhere / "run"), "3+1", "--tries", "1", *whole[5:]]) == 0
    refused(capsys, sample.main, [elsewhere / "run", "3+1"], "add --verifier", kind="folders")
    monkeypatch.chdir(elsewhere.rename(tmp_path / "moved"))  # as a whole: its own names still hold
    assert train.main(["--resume", "--out", "run", "--steps", "4", "--verifier", "rule.py:exact"]) == 0


def test_what_several_processes_cannot_do_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for more, words in (
        ([], "--prompts_per_step 1: fewer questions than the 2 processes"),
        (["--halve_micro_batch"], "--halve_micro_batch is for one process"),
        (["--look=1"], "--look is for one process"),
    ):
        refused(capsys, train.main, [*TINY, *more, "--out", tmp_path / "x"], words, kind="options")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verifier", ["rule.py:exact", "./x/../rule.py:other", "/etc/rule.py:f"])
def test_a_verifier_that_only_a_runs_folder_names_is_never_run(finished, tmp_path, monkeypatch, capsys, verifier):
    """Whoever wrote that config.json, the file that it names is code."""
    shutil.copytree(finished, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    config = json.loads(Path("run/config.json").read_text())
    Path("rule.py").write_text("open('ran', 'w')\n\ndef check(c, a):\n    return 0.0\n")
    Path("run/config.json").write_text(json.dumps({**config, "verifier": verifier}))
    refused(capsys, train.main, ["--resume", "--out", "run"], f"add --verifier {verifier}", kind="folders")
    assert not Path("ran").exists()


def test_a_pipe_or_a_device_is_refused_by_name_and_at_once(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    os.mkfifo("pipe.jsonl"), os.mkfifo("pipe.py"), os.mkfifo("run/pipe")
    number, _ = os.pipe()
    signal.signal(signal.SIGALRM, begins_work)
    signal.alarm(60)
    try:
        for name in ("pipe.jsonl", f"/dev/fd/{number}", "/dev/null", "/dev/zero"):
            if os.path.exists(name):
                asked = [*TINY, "--out", "new", "--data"]
                refused(capsys, train.main, [*asked, name], f"{name} is a pipe or a device: save", kind="data")
                refused(capsys, train.main, [*asked, "my.jsonl", "--eval_data", name], name, "pipe", kind="data")
        refused(capsys, train.main, [*TINY, "--out", "new", "--verifier", "pipe.py:check"], "pipe.py", kind="folders")
        os.replace("run/pipe", "run/config.json")
        refused(capsys, train.main, ["--resume", "--out", "run"], "config.json", kind="folders")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.close(number)
    assert not Path("new").exists()


# ---- the line --------------------------------------------------------------------------------------------------------


@given(st.text() | st.text("\x1b[\u202e\u200b\u2066\x9b\x07\ud800\u3164\n\r\t", max_size=9), st.integers(0, 2000))
def test_every_line_is_one_of_characters_that_show_and_of_bounded_length(text, times):
    for error in (UserError(text * times), ValueError(text * times), OSError(2, "x", text * times)):
        line = one_line(error)
        assert len(line) <= 800 and all(c.isprintable() and c not in "\u3164\u115f\uffa0" for c in line)
        line.encode()
    if "\u202e" in text:
        assert "\\u202e" in one_line(UserError(text))


def test_a_long_line_keeps_what_to_do_at_its_end():
    line = one_line(UserError("x" * 10**6 + ": do this"))
    assert line.startswith("xxx") and line.endswith("xxx: do this")


# ---- any words -------------------------------------------------------------------------------------------------------

WORDS = [*(f"--{name}" for name in FIELDS), "", *"-1 0 1 x nan 1e9 rlsd opd answer -- = é".split()]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=6))
def test_any_command_line_is_a_configuration_or_refused(argv):
    TRIED["options, fuzzed"] += 1
    if {"-h", "--help"} & set(argv):
        return
    try:
        assert isinstance(parse_config(argv), Config)
    except UserError as error:
        assert str(error)


def programs(folder):
    warm = [*TINY, "--warm_dir", folder]
    return [
        *((probe.main, ["--batches", number], f"--batches {number}") for number in ("0", "1", "-3")),
        (probe.main, ["--batches", "many"], "--batches"),
        (probe.main, ["--policy", folder], "--policy"),
        (probe.main, ["--lr", "nan"], "--lr nan"),
        (probe.main, ["--stepz", "1"], "--stepz"),
        (probe.main, ["--data", folder], "Is a directory"),
        (probe.main, [*warm, "--batches", "2", "--verifier", f"{folder}/v.py:zero"], "of 2 batches"),
        (probe.main, [*warm, "--verifier", f"{folder}/v.py:wrong"], "it returned 7"),
        (bench.main, ["--rounds", "x"], "--rounds"),
        (bench.main, ["--device", "tpu"], "--device"),
        (bench.main, ["extra"], "extra"),
        *((reproduce.main, [word], word) for word in ("--quik", "--rep", "extra")),
    ]


@pytest.mark.parametrize("i", range(len(programs(""))))
def test_the_other_programs_hold_to_the_rule(tmp_path, capsys, i):
    (tmp_path / "v.py").write_text("def zero(c, a):\n    return 0.0\n\ndef wrong(c, a):\n    return 7\n")
    main, argv, words = programs(str(tmp_path))[i]
    refused(capsys, main, argv, words, kind="other programs")


def test_the_report_passes_over_lines_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('7\n{"name": 1}\n[]\n{\n{"name": "a", "options": "b"}\n')
    assert reproduce.read(tmp_path) == [{"name": "a", "options": "b"}]
    assert capsys.readouterr().out.count("passed over") == 4
    TRIED["other programs"] += 4


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_out_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        refused(capsys, train.main, [*TINY, "--warm_dir", tmp_path / "w", "--out", out], str(out)[-40:], kind="folders")
    argv = [*TINY, "--out", tmp_path / "o", "--warm_dir", tmp_path / "file"]
    refused(capsys, train.main, argv, "file", kind="folders")
    assert (tmp_path / "file").read_text() == "mine"


def test_names_with_spaces_and_letters_of_any_alphabet(tmp_path):
    """A whole run, resumed, where the terminal lacks the letters, and one name has a byte that is no UTF-8."""
    home = tmp_path / "ein Ordner – 日本 'x' \udcff"
    try:
        home.mkdir()
    except OSError:  # some file systems have no such names
        (home := tmp_path / "ein Ordner – 日本 'x'").mkdir()
    (home / "Fragen ü.jsonl").write_text("".join(f'{{"question": "é{i}", "answer": "ß{i}"}}\n' for i in range(9)))
    (home / "règle.py").write_text("def check(c, a):\n    return float(len(c) % 2)\n")
    options = ["--data", home / "Fragen ü.jsonl", "--verifier", f"{home}/règle.py:check", "--out", home / "läuft"]
    command = [sys.executable, ROOT / "train.py", *TINY, *options, "--warm_dir", home / "warm"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}  # conftest.py has taken the locale out
    done = subprocess.run(command, capture_output=True, env=env, cwd=home)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert train.main([*map(str, ["--resume", *options, "--steps", "2"])]) == 0
    TRIED["folders"] += 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("")
    (tmp_path / "x.jsonl").chmod(0)
    refused(capsys, train.main, [*TINY, "--data", tmp_path / "x.jsonl"], "Permission denied", kind="folders")
