import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tasks
from model import ModelConfig, Transformer
from speed import memory, peers, stages, steps, table, turns
from speed.workload import SMOKE, Run, Skipped

BENCH = Path(__file__).resolve().parents[1] / "bench.py"


def run(*args):
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # two would wait for each other on a busy machine
    return subprocess.run([sys.executable, str(BENCH), *args], capture_output=True, text=True, env=one_thread)


@pytest.mark.slow
def test_smoke_measures_or_names_what_is_missing(tmp_path):
    done = run("--smoke", "--out", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in result["rows"]] == list(table.ROWS)
    assert sum(line.startswith("| ") and line.count("|") == 6 for line in lines) == 1 + len(table.ROWS)
    for row in result["rows"]:
        if "skipped" in row:
            assert "pip install -r requirements/bench.txt" in row["skipped"]
            assert row["name"].startswith(("sampling", "grpo-step")), "the other rows need no peer"
        else:
            assert 0 < row["least"] <= row["ratio"] <= row["greatest"]
    parts = result["profile"]["stages"].values()
    assert sum(stage["seconds"] for stage in parts) == pytest.approx(result["profile"]["seconds"], rel=1e-2)
    assert all(stage["seconds"] > 0 for stage in parts)
    assert result["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130", "2.14.0a0+git1234567", "9.9"])
def test_any_machine_can_be_described(build, monkeypatch):
    """Of any build of torch, without /proc, load average, count of cores, name of the processor, or peers."""

    def nothing(*args, **kwargs):
        raise OSError("not here")

    def no_package(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(build))
    monkeypatch.setattr(importlib.metadata, "version", no_package)
    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    monkeypatch.setattr(os, "getloadavg", nothing)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(table.platform, "processor", lambda: "")
    told = json.loads(json.dumps(table.machine("cpu")))
    assert told["torch"] == build and told["load_average"] is told["cpus"] is told["trl"] is None
    with pytest.raises(Skipped):
        memory.memory(Run(SMOKE, "cpu", 1))
    monkeypatch.delattr(os, "getloadavg")
    assert table.machine("cpu")["load_average"] is None


@pytest.mark.parametrize(
    "args, named",
    [
        (["--only", "speed"], "speed"),
        (["--rounds", "0"], "--rounds 0"),
        (["--smoke", "--out", "no/such/folder/bench.json"], "no/such/folder"),
        pytest.param(
            ["--device", "cuda"],
            "CUDA",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(args, named):
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr


def test_a_stage_inside_another_counts_once(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(stages, "now", lambda device: next(clock))
    watch = stages.Stopwatch("cpu")
    inner = watch.timed("inner", lambda: None)
    watch.timed("outer", inner)()
    assert watch.seconds == {"inner": 2.0, "outer": 8.0}


def test_the_first_turn_of_each_does_not_count():
    order = []
    works = [lambda i, name=name: order.append((name, i)) or i for name in "ab"]
    a, b = turns.turns(Run(SMOKE, "cpu", 2), *works)
    assert order == [(name, i) for i in range(3) for name in "ab"]
    assert [i for _, i in a] == [i for _, i in b] == [1, 2]


def test_the_coin_pays_in_about_its_share_of_the_questions():
    verifier = steps.coin(0.6)
    completions = [f"completion {i}" for i in range(16)]
    spread = [len({verifier(c, str(answer)) for c in completions}) > 1 for answer in range(1000)]
    assert 0.55 < sum(spread) / 1000 < 0.65
    assert steps.coin(0.0)("#### 7", "7") == 1.0, "a right answer is still right"


@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"tie_embeddings": False, "num_kv_heads": 4}])
def test_transformers_computes_the_same_logits(options):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=50, **options))
    for p in model.parameters():  # norms start at 1, where a mixed-up one would not show
        torch.nn.init.normal_(p, std=0.1) if p.dim() == 2 else torch.nn.init.uniform_(p, 0.5, 1.5)
    tokens = torch.randint(50, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(peers.to_transformers(model)(tokens).logits, model(tokens), atol=1e-4, rtol=0)


def test_trl_gets_the_same_prompt_tokens():
    pytest.importorskip("transformers")
    tokenizer = peers.byte_tokenizer()
    prompt = tasks.student_prompt(tasks.Problem("12+34 é", "46"))
    text = tasks.TOKENIZER.decode(prompt)
    assert tokenizer(text)["input_ids"] == prompt
    assert tokenizer.decode([*prompt, tasks.END], skip_special_tokens=True) == "12+34 é"
    assert tokenizer.decode(list(range(256, 258))) == "######"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (tasks.END, tasks.REFERENCE)
