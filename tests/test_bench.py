import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from noted import noted

import bench
import tasks
from model import ModelConfig, Transformer
from speed import matrix_products, memory, peers, sampling, several, stages, steps, table, turns
from speed.workload import SMOKE, Run, Size, Skipped, new_model, published_shape, wide_shape

SMALL = Run(SMOKE, "cpu", 1)
PROCESSES = "grpo-step-2 grpo-step-plain-2 rlsd-lambda-2 rlsd-2 rlsd-4 train train-busy train-memory".split()
COMMITTED = json.loads((Path(bench.__file__).parent / "results" / "bench.json").read_text())


def paced(monkeypatch, module, *paces):
    """Works that a module lets take turns need these seconds, in later rounds twice and four times as many."""
    rounds = lambda work, seconds: [(n * seconds, work(n)) for n in (1, 2, 4)]
    monkeypatch.setattr(module, "turns", lambda run, *works, **_: [*map(rounds, works, paces)])


def held_to_the_committed_one(row: dict) -> None:
    """A row at tiny sizes has the figures of the committed one, or names what is missing."""
    name = row["name"]
    told = next(row for row in COMMITTED["rows"] if row["name"] == name)
    if "not measured" in row.get("skipped", ""):  # too few cores, or no Linux
        assert name in (*PROCESSES, "memory")
    elif "skipped" in row:
        assert "pip install -r requirements/bench.txt" in row["skipped"]
        assert name.startswith(("sampling", "grpo-step")), "the other rows need no peer"
    else:
        assert 0 < row["least"] <= row["ratio"] <= row["greatest"]
        assert "skipped" in told or row.keys() == told.keys()  # seconds of both sides, among others
        if name == "memory":
            assert row["ratio"] < 1


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
    assert (told["device"], told["cpu"]) == ("cpu", "")
    with pytest.raises(Skipped):
        memory.memory(SMALL)
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nmodel name\t: Some CPU: 2 GHz \n")
    assert table.machine("cpu")["load_average"] is None and table.machine("cpu")["cpu"] == "Some CPU: 2 GHz"


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


def test_what_is_asked_for_is_measured_and_printed(monkeypatch, capsys):
    """The whole table goes into the results; a worker's figures and a peak are for the program that asks."""
    assert bench.parse([]).out == str(bench.RESULTS / "bench.json") and bench.parse([]).rounds == 7
    assert bench.parse(["--smoke"]).out is None and bench.parse(["--smoke"]).rounds == 2
    monkeypatch.setitem(bench.WORKERS, "rlsd", lambda run: {"seconds": run.rounds})
    monkeypatch.setattr(bench, "peak_of_update", lambda run, which: f"{which} {run.size is SMOKE}")
    assert bench.main(["--worker", "rlsd", "--rounds", "3"]) == bench.main(["--memory", "full", "--smoke"]) == 0
    assert capsys.readouterr().out == '{"seconds": 3}\nfull True\n'
    command = [sys.executable, bench.__file__, "--smoke", "--rounds", "1", "--only", "profile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "| mm |" in done.stdout


def test_a_stage_inside_another_counts_once(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(stages, "now", lambda device: next(clock))
    watch = stages.Stopwatch("cpu")
    inner = watch.timed("inner", lambda: None)
    watch.timed("outer", inner)()
    assert watch.seconds == {"inner": 2.0, "outer": 8.0}


def test_the_first_turn_of_each_does_not_count(monkeypatch):
    """Nor what is done before a turn: turns begin at 1, 16, 49, ... and end at 4, 25, 64, ..."""
    order, clock = [], itertools.count()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("waits"))
    assert turns.now("cpu") < turns.now("cuda") and order.pop() == "waits" and not order
    monkeypatch.setattr(turns, "now", lambda device: next(clock) ** 2)
    works = [lambda i, name=name: order.append((name, i)) or i for name in "ab"]
    a, b = turns.turns(Run(SMOKE, "cpu", 2), *works, before=lambda: next(clock))
    assert order == [(name, i) for i in range(3) for name in "ab"]
    assert (a, b) == ([(15, 1), (27, 2)], [(21, 1), (33, 2)])


def test_a_row_is_measured_at_the_size_asked_for_and_held_to_its_goal(monkeypatch, capsys):
    """At tiny sizes nothing is reached or missed."""
    sizes, words = [], {True: "| yes |", False: "| no |", None: "| - | - |"}
    for goal, met in ((">= 3", True), ("<= 2", False), (">= 4", False), ("<= 3", True), ("-", None)):
        row = table.Row("work", "beside", goal, lambda run: sizes.append(run.size) or {"ratios": [1.0, 3.0, 9.0]})
        monkeypatch.setitem(table.ROWS, "length", row)
        measured = table.measure("length", Run(Size(), "cpu", 1))
        assert measured["reached"] is met and table.table_line(measured).endswith(words[met])
        assert table.measure("length", SMALL)["reached"] is None
    sizes.clear()
    for more in (["--smoke"], []):
        assert bench.main(["--only", "length", "--rounds", "1", *more]) == 0
    assert sizes == [SMOKE, Size()] and "| 3 [1..9] |" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_told_in_bytes():
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory.memory_status("VmRSS") == pytest.approx(now, rel=0.1) and memory.memory_status("VmNone") == 0


def test_turns_of_one_model_begin_alike():
    """Models of a run have the same weights; what a turn changed is put back, the optimizer's moments too."""
    one, two = (new_model(SMALL, ModelConfig(50)) for _ in range(2))
    assert torch.equal(one.embed.weight, two.embed.weight)
    trainer = steps.Trainer(SMALL, "rlsd", share=1.0)
    trainer.step(1, 0.5)
    put_back, ends = trainer.snapshot(), []
    for _ in range(3):
        trainer.step(2, 0.5)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.state.policy.parameters()]))
        put_back()
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_tokens_of_both_samplers_are_counted_to_the_stop_and_no_further(monkeypatch):
    """Of four tokens one ends a completion; padding would make twelve of each."""
    generation = pytest.importorskip("transformers").GenerationMixin
    asked = noted(monkeypatch, generation, "generate", lambda model, **how: how.values())
    run, prompts = Run(SMOKE._replace(group=200), "cpu", 1), [[2, 3], [3, 2, 2]]
    figures = sampling.beside_generate(run, ModelConfig(4, tie_embeddings=False), prompts, tokens=12, stop=1)
    padded, mask, settings = asked[0]
    assert [row[m > 0].tolist() for row, m in zip(padded, mask)] == prompts and settings.eos_token_id == 1
    assert 400 < figures["tokens"] < 0.8 * 12 * 400
    assert figures["tokens_beside"] == pytest.approx(figures["tokens"], rel=0.15)


def test_the_coin_pays_in_about_its_share_of_the_questions():
    verifier = steps.coin(0.6)
    completions = [f"completion {i}" for i in range(16)]
    spread = [len({verifier(c, str(answer)) for c in completions}) > 1 for answer in range(1000)]
    assert 0.55 < sum(spread) / 1000 < 0.65
    assert steps.coin(0.0)("#### 7", "7") == 1.0, "a right answer is still right"


def test_trl_gets_the_same_prompt_tokens():
    pytest.importorskip("transformers")
    tokenizer = peers.byte_tokenizer()
    prompt = tasks.student_prompt(tasks.Problem("12+34 é", "46"))
    text = tasks.TOKENIZER.decode(prompt)
    assert tokenizer(text)["input_ids"] == prompt
    assert tokenizer.decode([*prompt, tasks.END], skip_special_tokens=True) == "12+34 é"
    assert tokenizer.decode(list(range(256, 258))) == "######"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (tasks.END, tasks.REFERENCE)
    assert tokenizer.padding_side == "left"


def test_peers_stay_offline_and_one_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert peers.peers("json") == [json] and os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(Skipped, match="pip install -r requirements/bench.txt"):
        peers.peers("json", "no_such_package")


def test_one_thread_is_one_while_it_is_measured(monkeypatch):
    threads, seen, set_to = torch.get_num_threads(), [], []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    assert table.in_one_thread(lambda run: seen.append(set_to[-1]) or {"ratios": [run]}, 7) == {"ratios": [7]}
    with pytest.raises(Skipped):
        table.in_one_thread(lambda run: (_ for _ in ()).throw(Skipped("no")), 7)
    assert seen == [1] and set_to == [1, threads] * 2


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
    assert Size().published[:3] == (8, 8, 80) and published_shape(SMALL).hidden_size == 64
    wide = wide_shape(Run(Size(), "cpu", 7))
    assert (wide.hidden_size, wide.intermediate_size, wide.num_heads, wide.num_kv_heads) == (512, 1536, 8, 4)


@pytest.mark.parametrize(
    "measure, tokens", [(sampling.sampling_512, 1 * 4 * 8), (sampling.sampling_published, 2 * 4 * 6)]
)
def test_a_ratio_of_samplers_is_one_of_tokens_a_second(monkeypatch, measure, tokens):
    pytest.importorskip("transformers")
    paced(monkeypatch, sampling, 2.0, 8.0)
    rates = {"tokens_per_second": tokens / 4, "tokens_per_second_beside": tokens / 16}
    assert measure(SMALL) == {"ratios": [4.0] * 3, **rates, "tokens": tokens, "tokens_beside": tokens}


def test_a_ratio_of_lengths_is_one_of_seconds_a_token(monkeypatch):
    """Twice the tokens in three times the seconds; the fourth length has eight times the first one's."""
    paced(monkeypatch, sampling, 1.0, 3.0, 9.0, 27.0, 81.0)
    found = {2: 1.0, 4: 1.5, 8: 2.25, 16: 3.375, 32: 5.0625}
    assert sampling.length(SMALL) == {"ratios": [27 / 8] * 3, "seconds_per_token": found}


def test_a_floor_is_all_products_of_the_same_work(monkeypatch):
    """Every row to its end at the mean context; in an update each sample is trained, and the prompts are read once."""
    work, batches = [], []
    paced(monkeypatch, matrix_products, 8.0, 4.0, 2.0)
    monkeypatch.setattr(matrix_products, "multiply", lambda p: work.append(sum(a.numel() * b.shape[-1] for a, b in p)))
    monkeypatch.setattr(matrix_products.train, "update", lambda *given: batches.append(given[3]))
    model = new_model(SMALL, matrix_products.DEFAULT)
    scores = model.config.num_layers * model.config.num_heads * model.config.head_dim * 2  # of a query and a key
    head = model.head.weight.numel()
    layers = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head
    more = {"ratio_to_the_linear_layers_alone": 4.0}
    a_token = {"seconds_per_token": 16 / 6, "seconds_per_token_beside": 8 / 6}
    assert matrix_products.floor_decode(SMALL) == {"ratios": [2.0] * 3, **a_token, **more}
    linear, attention = 6 * 8 * (layers + head), 6 * 8 * (8 + 3) * scores
    assert work == [linear + attention] * 3 + [linear] * 3
    work.clear()
    assert matrix_products.floor_update(SMALL) == {"ratios": [2.0] * 3, "seconds": 16, "seconds_beside": 8, **more}
    linear, attention = 3 * ((2 * 9 + 8 * 7) * layers + 8 * 8 * head), 3 * 8 * 7 * (9 + 7) * scores
    assert work == [linear + attention] * 3 + [linear] * 3
    batch = batches[0]
    assert {len(tasks.student_prompt(problem)) for problem in batch.problems} == {9}
    assert [sample.answer for sample in batch.problems] == ["0"] * 8 and batch.samples.mask.sum() == 8 * 8
    assert batch.rewards.tolist() == [0, 1] * 4 and all(batch.advantages) and batch.samples.logps.grad_fn is None


def test_memory_is_that_of_ours_over_the_full_softmax_of_the_same_scores(monkeypatch):
    sums, peaks = [], {"ours": 2.0**20, "full": 2.0**22}
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: sums.append(loss.item()))
    monkeypatch.setattr(memory, "memory_status", {"VmRSS": 5, "VmHWM": 12}.get)
    models = noted(monkeypatch, memory, "new_model", lambda run, config: config.num_layers)
    full = noted(monkeypatch, torch, "log_softmax", lambda logits, dim: tuple(logits.shape))
    assert [memory.peak_of_update(SMALL, which) for which in peaks] == [7, 7]
    assert models == [1, 1] and full[-1] == SMOKE.memory
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    monkeypatch.setattr(memory, "peak_in_a_process", lambda run, which: peaks[which])
    ntv = 4 * 64 * 32 * 20_000
    tensors = {"ntv_float_tensors": 2**20 / ntv, "ntv_float_tensors_beside": 2**22 / ntv}
    assert memory.memory(SMALL) == {"ratios": [0.25], "bytes": 2**20, "bytes_beside": 2**22, **tensors}


def test_at_lambda_0_both_steps_draw_the_same_samples(monkeypatch):
    paced(monkeypatch, steps, 2.0, 8.0)
    trained = noted(monkeypatch, steps.train, "update", lambda *given: bool(given[3].advantages.any()))
    found = steps.beside_grpo(SMALL, lam=0.0)
    assert len(trained) == 7 and any(trained)
    assert 2 * 4 * 6 / 2 < found.pop("tokens") <= 2 * 4 * 6
    assert found == {"ratios": [0.25] * 3, "seconds": 4.0, "seconds_beside": 16.0}


def test_a_step_of_trl_is_of_the_same_size(monkeypatch):
    trl = pytest.importorskip("trl")
    asked = noted(monkeypatch, trl, "GRPOConfig", lambda *_, **options: options)
    run = SMALL._replace(size=SMOKE._replace(prompts=3, group=2))
    found = steps.beside_trl(run, ours := steps.Trainer(run, "grpo", share=1.0))
    assert ours.state.optimizer.state  # it is the one that was given
    assert (asked[0]["per_device_train_batch_size"], asked[0]["num_generations"]) == (6, 2)
    assert (asked[0]["max_completion_length"], asked[0]["max_steps"]) == (6, 3)
    assert len(found["ratios"]) == len(found["tokens"]) == len(found["tokens_beside"]) == 1
    monkeypatch.setattr(steps, "beside_trl", lambda run, ours, **how: (run.size[:3], ours.state.policy.config, how))
    small = SMALL._replace(size=SMOKE._replace(published=(1, 2, 13, 4, 5)))
    monkeypatch.setattr("speed.workload.SMOKE", small.size)
    assert steps.published_beside_trl(small) == ((1, 2, 5), published_shape(small), several.PLAIN)


def test_a_row_is_measured_as_its_words_say():
    for row in table.ROWS.values():
        how = repr(row.measure)
        assert ("in_one_thread" in how) == ("one thread" in row.work), row
        plain = "bf16=False" in how or "trl-plain" in how or "published_beside_trl" in how
        assert plain == (row.beside == table.PLAIN_TRL), row
    given = lambda name: table.ROWS[name].measure.keywords["lam"]
    assert (given("rlsd-lambda"), given("rlsd-zero")) == (0.5, 0.0)


def test_a_row_says_what_is_measured():
    """The figures in the words of a row are those of the size at which it is measured."""
    size, wide, (prompts, group, length, sampled, trained) = Size(), Size().wide, Size().published
    words = {
        "sampling": [size.prompts, size.group, size.tokens],
        "sampling-512": [wide[2], size.group, wide[0], wide[1], wide[3]],
        "sampling-135m": [135, 2, prompts, length, group, sampled],
        **dict.fromkeys(["grpo-step-135m", "floor-update-135m"], [135, 2, prompts * group, trained]),
        "floor-decode": [size.prompts * size.group],
        "floor-decode-512": [wide[2] * size.group, wide[0]],
        "floor-update": [size.prompts * size.group, size.floor_tokens],
        "memory": [*size.memory],
        "length": [size.lengths[3]],
    }
    for name, figures in words.items():
        found = re.findall(r"\d[\d,]*", table.ROWS[name].work)
        assert sorted(int(n.replace(",", "")) for n in found) == sorted(figures), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in table.ROWS if name not in PROCESSES])
def test_a_row_has_the_figures_of_the_committed_one_and_no_output_of_a_peer(name, capfd):
    held_to_the_committed_one(table.measure(name, SMALL))
    assert capfd.readouterr() == ("", "")


def test_the_program_writes_the_page_that_it_prints(tmp_path, monkeypatch, capsys):
    """All rows with names of their own, in their order, and what an RLSD step and the sampler consist of."""
    committed = [[row[of] for of in ("name", "work", "beside", "goal")] for row in COMMITTED["rows"]]
    assert committed == [[name, *row[:3]] for name, row in table.ROWS.items()]
    monkeypatch.setattr(bench, "ROWS", ["floor-decode", "length"])
    made = noted(monkeypatch, stages.Trainer, "step", lambda self, *told: told)
    assert bench.main(["--smoke", "--rounds", "1", "--out", str(tmp_path / "bench.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert made == [(0, 0.5), (1, 0.5)]  # the first one warms up
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "bench.json").read_text())
    page = (tmp_path / "bench.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("|")] == [line for line in page if line.startswith("|")]
    assert {line.replace("---|", "") for line in page if line.startswith("|--")} == {"|"}
    assert [row["name"] for row in result["rows"]] == ["floor-decode", "length"]
    parts = result["profile"]["stages"]
    assert parts.keys() == COMMITTED["profile"]["stages"].keys() and all(of["seconds"] > 0 for of in parts.values())
    for whole, of in (("seconds", result["profile"]["seconds"]), ("share", 1)):
        assert sum(stage[whole] for stage in parts.values()) == pytest.approx(of, rel=1e-2)
    shares = list(result["operations"].values())
    assert "mm" in result["operations"] and sum(shares) <= 1
    assert shares == sorted(shares)[::-1] and shares[-1] >= 0.01
    assert result["machine"]["torch"] == torch.__version__
