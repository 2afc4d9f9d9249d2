"""Options of every program: out of range, of another type, unknown, contradictory; folders with odd names."""

import dataclasses
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import ROOT, TINY, TRIED, contents, refused

import bench
import reproduce
import train
from config import Config, parse_config
from errors import UserError
from study import probe

NO_INT = ("", "x", "1.5", "nan", "inf", "1e3", "0x10", "--", "9" * 5000)
NO_FLOAT = ("", "x", "nan", "inf", "-inf", "1e400", "-1e300", "1,5", "0x1p3")
FIELDS = {f.name: f for f in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_refuses_what_it_cannot_be(tmp_path, capsys, name):
    f = FIELDS[name]
    bad = {int: NO_INT, float: NO_FLOAT, str: ("ppo", "") if f.metadata["choices"] else (), bool: ("=yes",)}[f.type]
    bad += tuple(str(f.metadata[k] + d) for k, d in (("low", -1), ("high", 1)) if f.metadata[k] is not None)
    for value in bad:
        refused(
            capsys, train.main, [*TINY, f"--{name}{value if f.type is bool else f'={value}'}"], name, kind="options"
        )
    if f.type is int:
        assert f.metadata["low"] is not None and f.metadata["high"] is not None
    refused(capsys, train.main, [*TINY, f"--{name}_"], f"--{name}_", kind="options")


TOGETHER = {
    "--method grpo --evidence agreement": "--method grpo",
    "--method sdpo --rlsd_lambda 0.5": "--method sdpo",
    "--warm_steps 0 --warm_cite 0.5": "--warm_cite has no use without a warm start",
    "--init nowhere --warm_steps 0 --warm_lr 1e-4": "--warm_lr has no use without a warm start",
    "--warm_slip 0.5 --data x.jsonl": "--warm_slip is for built-in tasks",
    "--method opd": "--opd_teacher",
    "--opd_teacher x": "--opd_teacher",
    "--method opd --opd_teacher nowhere": "--opd_teacher nowhere",
    "--data x.jsonl --task addition": "--data and --task",
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
    "--group_size 1": "--group_size 1",
    "--chain 20": "--max_new_tokens",
    "--max_new_tokens 250": "--max_seq_len 256",
    "--verifier nothing": "nothing",
    "--verifier nothing.py:check": "there is no file",
    "--verifier .:check": "none of",
    "--verifier reasoning_gym:x": "reasoning_gym",
    "extra": "extra",
    "-x": "-x",
    "--out\nx": "unrecognized",
}


@pytest.mark.parametrize("line", TOGETHER)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    refused(capsys, train.main, [*TINY, *line.split(" ")], TOGETHER[line], kind="options")
    assert not contents(tmp_path)


WORDS = [f"--{name}" for name in FIELDS] + [
    "-1",
    "0",
    "1",
    "x",
    "",
    "nan",
    "1e9",
    "rlsd",
    "opd",
    "answer",
    "--",
    "=",
    "é",
]


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
    return [
        (probe.main, ["--batches", "0"], "--batches 0"),
        (probe.main, ["--batches", "1"], "--batches 1"),
        (probe.main, ["--batches", "many"], "--batches"),
        (probe.main, ["--batches", "-3"], "--batches -3"),
        (probe.main, ["--policy", folder], "--policy"),
        (probe.main, ["--lr", "nan"], "--lr nan"),
        (probe.main, ["--stepz", "1"], "--stepz"),
        (probe.main, ["--data", folder], "Is a directory"),
        (
            probe.main,
            [*TINY, "--warm_dir", folder, "--batches", "2", "--verifier", f"{folder}/v.py:zero"],
            "of 2 batches",
        ),
        (probe.main, [*TINY, "--warm_dir", folder, "--verifier", f"{folder}/v.py:wrong"], "it returned 7"),
        (bench.main, ["--rounds", "0"], "--rounds 0"),
        (bench.main, ["--rounds", "x"], "--rounds"),
        (bench.main, ["--only", "nothing"], "--only"),
        (bench.main, ["--device", "tpu"], "--device"),
        (bench.main, ["--out", folder], "--out"),
        (bench.main, ["--out", f"{folder}/none/x.json"], "--out"),
        (bench.main, ["extra"], "extra"),
        (reproduce.main, ["--quik"], "--quik"),
        (reproduce.main, ["--rep"], "--rep"),
        (reproduce.main, ["extra"], "extra"),
    ]


@pytest.mark.parametrize("i", range(len(programs(""))))
def test_the_other_programs_hold_to_the_rule(tmp_path, capsys, i):
    (tmp_path / "v.py").write_text("def zero(c, a):\n    return 0.0\n\ndef wrong(c, a):\n    return 7\n")
    main, argv, words = programs(str(tmp_path))[i]
    refused(capsys, main, argv, words, kind="other programs")


PLOTS = {
    "x": (b"x", "metrics.jsonl:1: no line of a run"),
    "torn": (b'{"step": 0, "pass@1": 0.5}\n{"step": 1, "rew', "metrics.jsonl:2: no line of a run"),
    "no step": (b'{"reward": 1}', "metrics.jsonl:1"),
    "list": (b"[1]", "metrics.jsonl:1"),
    "text": (b'{"step": 1, "reward": "high"}', "metrics.jsonl:1"),
    "null": (b'{"step": 1, "reward": null}', "metrics.jsonl:1"),
    "nested": (b'{"step": 1, "reward": {"a": 1}}', "metrics.jsonl:1"),
    "not UTF-8": (b'{"step": 1, "\xff": 1}', "metrics.jsonl:1"),
    "deep": (b"[" * 100_000, "metrics.jsonl:1"),
}


def test_plot_names_the_line_it_cannot_read(tmp_path, capsys):
    plot = pytest.importorskip("plot")
    for content, words in PLOTS.values():
        (tmp_path / "metrics.jsonl").write_bytes(content)
        refused(capsys, plot.main, [tmp_path, "--out", tmp_path / "x.png"], words, kind="other programs")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "pass@1": 0.5, "greedy": 0.5}\n')
    for argv, words in (
        ([], "RUN"),
        ([tmp_path, "--outt", "x"], "--outt"),
        ([tmp_path / "none"], "holds no metrics.jsonl"),
        ([tmp_path, "--out", tmp_path], "--out"),
        ([tmp_path, "--out", tmp_path / "x.doc"], "doc"),
        ([tmp_path, "--out", tmp_path / "none" / "x.png"], "none"),
    ):
        refused(capsys, plot.main, argv, words, kind="other programs")
    odd = tmp_path / r"$x^$ _{é} 日本"
    odd.mkdir()
    (odd / "metrics.jsonl").write_text('{"step": 0, "reward": 0.5}\n{"step": 1, "reward": 0.6}\n')
    assert plot.main([str(tmp_path), str(odd), "--out", str(odd / "c.png")]) == 0 and (odd / "c.png").is_file()


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
    refused(
        capsys, train.main, [*TINY, "--out", tmp_path / "o", "--warm_dir", tmp_path / "file"], "file", kind="folders"
    )
    assert (tmp_path / "file").read_text() == "mine"


def environment(**more):
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))},
        "OMP_NUM_THREADS": "1",
        **more,
    }


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
    python, env = [sys.executable, ROOT / "train.py"], environment(PYTHONIOENCODING="ascii")
    for argv in ([*TINY, *options, "--warm_dir", home / "warm"], ["--resume", "--out", home / "läuft", "--steps", "2"]):
        done = subprocess.run([*python, *argv], capture_output=True, env=env, cwd=home)
        assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    TRIED["folders"] += 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("")
    (tmp_path / "x.jsonl").chmod(0)
    refused(capsys, train.main, [*TINY, "--data", tmp_path / "x.jsonl"], "Permission denied", kind="folders")
