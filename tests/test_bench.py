import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bench
import tasks
from model import ModelConfig, Transformer
from speed import matrix_products, memory, peers, sampling, several, stages, steps, table, turns
from speed.workload import SMOKE, Run, Size, Skipped, new_model, published_shape


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
        (["--smoke", "--out", "/"], "--out /: a file in a folder"),
        (["--device", "cuda"], "CUDA"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(monkeypatch, capsys, args, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bench.py: ") and len(err.splitlines()) == 1 and named in err


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


def test_a_row_is_measured_at_the_size_asked_for_and_held_to_its_goal(monkeypatch, capsys):
    """At tiny sizes nothing is reached or missed."""
    sizes = []
    for goal, met in ((">= 2", True), ("<= 2", False), (">= 4", False), ("<= 4", True), ("-", None)):
        row = table.Row("work", "beside", goal, lambda run: sizes.append(run.size) or {"ratios": [1.0, 3.0, 9.0]})
        monkeypatch.setitem(table.ROWS, "length", row)
        assert table.measure("length", Run(Size(), "cpu", 1))["reached"] is met
        assert table.measure("length", Run(SMOKE, "cpu", 1))["reached"] is None
    sizes.clear()
    for more in (["--smoke"], []):
        assert bench.main(["--only", "length", "--rounds", "1", *more]) == 0
    assert sizes == [SMOKE, Size()] and "| 3 [1..9] |" in capsys.readouterr().out


def test_the_floor_has_the_products_of_a_pass_and_backward_twice_as_many():
    work = lambda products: sum(a.numel() * b.shape[-1] for a, b in products)  # multiplications and additions
    model = new_model(Run(SMOKE, "cpu", 1), ModelConfig(50))
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2)  # the head's is the embedding
    head = model.head.weight.numel()
    scores = 5 * model.config.num_layers * model.config.num_heads * model.config.head_dim * 2 * 11
    for backward, times in ((False, 1), (True, 3)):
        products = matrix_products.linear_products(model, 7, 3, backward)
        assert work(products) == times * (7 * (linear - head) + 3 * head)
        assert work(matrix_products.attention_products(model, 5, 2, 11, backward)) == times * 2 * scores


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_told_in_bytes():
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory.memory_status("VmRSS") == pytest.approx(now, rel=0.1) and memory.memory_status("VmNone") == 0


def test_turns_of_one_model_begin_alike():
    """Models of a run have the same weights; what a turn changed is put back, the optimizer's moments too."""
    one, two = (new_model(Run(SMOKE, "cpu", 1), ModelConfig(50)) for _ in range(2))
    assert torch.equal(one.embed.weight, two.embed.weight)
    trainer = steps.Trainer(Run(SMOKE, "cpu", 1), "rlsd", share=1.0)
    trainer.step(1, 0.5)
    put_back, ends = trainer.snapshot(), []
    for _ in range(3):
        trainer.step(2, 0.5)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.state.policy.parameters()]))
        put_back()
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_tokens_of_both_samplers_are_counted_to_the_stop_and_no_further():
    """Of four tokens one ends a completion; padding would make twelve of each."""
    pytest.importorskip("transformers")
    run = Run(SMOKE._replace(group=200), "cpu", 1)
    figures = sampling.beside_generate(run, ModelConfig(4, tie_embeddings=False), [[2, 3], [3, 2]], tokens=12, stop=1)
    assert 400 < figures["tokens"] < 0.8 * 12 * 400
    assert figures["tokens_beside"] == pytest.approx(figures["tokens"], rel=0.15)


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


def test_one_thread_is_one_while_it_is_measured(monkeypatch):
    threads, seen, set_to = torch.get_num_threads(), [], []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    assert table.in_one_thread(lambda run: seen.append(set_to[-1]) or {"ratios": [run]}, 7) == {"ratios": [7]}
    with pytest.raises(Skipped):
        table.in_one_thread(lambda run: (_ for _ in ()).throw(Skipped("no")), 7)
    assert seen == [1] and set_to == [1, threads] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_memory_of_a_job_is_that_of_all_its_processes():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = [1] * 10**7 * 2; input()'])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as program:
        deadline = time.monotonic() + 20
        while (found := sum(map(several.proportional, several.family(program.pid)))) < 10**8:
            assert time.monotonic() < deadline
        assert len(several.family(program.pid)) == 2 and found < 3 * 10**8
        program.communicate(b"\n")
    assert several.proportional(program.pid) == 0


def test_processes_that_halve_the_seconds_have_a_ratio_of_two(monkeypatch):
    monkeypatch.setattr(several, "cores", lambda: 2)
    monkeypatch.setattr(several, "launched", lambda workers, *_: str(1 / workers))
    assert several.rlsd_step(Run(SMOKE, "cpu", 3), workers=2)["ratios"] == [2.0] * 3


def test_a_wide_vocabulary_has_a_name_for_every_token_and_encodes_as_before():
    pytest.importorskip("transformers")
    wide, theirs = peers.wide_tokenizer(300), peers.byte_tokenizer(300)
    text, more = "<265>\u00e9 #### 12", [*range(262, 300)]
    assert wide.n_vocab == 300 and wide.encode_ordinary(text) == tasks.TOKENIZER.encode_ordinary(text)
    assert wide.decode(more) == theirs.decode(more) == "".join(f"<{i}>" for i in more)


def test_the_published_rows_have_the_shape_of_smollm2():
    """As its config.json has it; 8 prompts of 80 tokens and 64 samples, whatever the other rows do."""
    config = published_shape(Run(Size(), "cpu", 7))
    assert (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads) == (576, 30, 9, 3)
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(config).parameters()) == 134_515_008
    assert Size().published[:3] == (8, 8, 80) and published_shape(Run(SMOKE, "cpu", 1)).hidden_size == 64


@pytest.mark.slow
def test_smoke_measures_or_names_what_is_missing(tmp_path):
    command = [sys.executable, bench.__file__, "--smoke", "--rounds", "1", "--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in result["rows"]] == list(table.ROWS)
    assert sum(line.startswith("| ") and line.count("|") == 6 for line in lines) == 1 + len(table.ROWS)
    committed = json.loads((Path(bench.__file__).parent / "results" / "bench.json").read_text())["rows"]
    told = {row["name"]: row for row in committed if "skipped" not in row}
    for row in result["rows"]:
        if "core" in row.get("skipped", ""):
            assert row["name"].endswith(("-2", "-4"))
        elif "skipped" in row:
            assert "pip install -r requirements/bench.txt" in row["skipped"]
            assert row["name"].startswith(("sampling", "grpo-step")), "the other rows need no peer"
        else:
            assert 0 < row["least"] <= row["ratio"] <= row["greatest"]
            assert row.keys() == told.get(row["name"], row).keys()  # seconds of both sides, among others
    parts = result["profile"]["stages"].values()
    assert sum(stage["seconds"] for stage in parts) == pytest.approx(result["profile"]["seconds"], rel=1e-2)
    assert all(stage["seconds"] > 0 for stage in parts)
    assert 0.1 < result["operations"]["mm"] < sum(result["operations"].values()) <= 1
    assert result["machine"]["torch"] == torch.__version__
