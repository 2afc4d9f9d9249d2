"""sample.py: what it shows is what training would do, whatever the model wrote, and its errors are one line."""

import contextlib
import dataclasses
import html
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noted import noted

import sample
import tasks
from config import Config
from credit import answers, terminal
from credit.page import page
from credit.questions import completed, find_problem
from credit.tokens import NAMES, Sample, Token, bounds, depth, push_depth, visible
from harness.models import build_model
from model import Samples, token_logps
from rlsd import rlsd_loss, token_advantages
from support.errors import UserError
from support.files import save
from verifiers import expression

TINY = {"hidden_size": 32, "num_layers": 1, "eval_problems": 5, "group_size": 4, "max_seq_len": 128}
OPTIONS = TINY | {"chain": 2, "max_new_tokens": 24}
FAILS = "n = []\ndef check(completion, answer):\n    n.append(1)\n    if {}: raise OSError('outage')\n    return {}\n"


def make_run(folder, **options):
    """A run's folder as train.py leaves it, with untrained weights and a verifier that finds spread in noise."""
    folder.mkdir()
    rules = folder / "rules.py"
    rules.write_text("def check(completion, answer):\n    return float(sum(map(ord, completion)) % 2)\n")
    config = Config(**{**OPTIONS, "verifier": f"{rules}:check", **options})
    model = build_model(config)
    with torch.no_grad():  # far from uniform, so that the reference makes a difference
        for p in model.parameters():
            p.mul_(3)
    (folder / "config.json").write_text(json.dumps({**dataclasses.asdict(config), "fingerprint": "of the files"}))
    save(model.state_dict(), folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample") / "run")


def trusted(run):
    """The options of somebody who has read the run's verifier, and runs it."""
    verifier = json.loads((run / "config.json").read_text())["verifier"]
    return {"verifier": verifier} if ".py:" in verifier else {}


def ask(run, *argv, capsys):
    code = sample.main([str(run), *argv, *(f"--{name}={value}" for name, value in trusted(run).items())])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err
    return out


def refused(*argv, capsys):
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # a folder that is no run has none
        argv = (*argv, *(f"--{name}={value}" for name, value in trusted(argv[0]).items()))
    code = sample.main([str(arg) for arg in argv])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("sample.py: ") and err.count("\n") == 1, err
    return err


def figures(printed):
    """The six columns of every token."""
    return [line.split()[-6:] for line in printed.splitlines() if re.match(r" *\d+ '", line)]


def spied(monkeypatch):
    """The batches whose credit is worked out from here on."""
    return noted(monkeypatch, answers, "credited", lambda student, teacher, batch, *_: batch)


# ---- the credit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam, eps_w", [(0.5, 0.2), (1.0, 4.0), (0.0, 0.2)])
def test_the_credit_shown_is_the_formula_by_hand(run, capsys, monkeypatch, lam, eps_w):
    batches = spied(monkeypatch)
    options = f"--rlsd_lambda {lam} --rlsd_reweight_clip_range {eps_w}".split()
    rows = figures(ask(run, "47+85", *options, capsys=capsys))
    model = sample.load_run(run, trusted(run)).model
    problem, moved = tasks.Problem("47+85", "132"), 0
    assert batches[0].advantages[0] > 0 > batches[0].advantages[1]
    for ids, advantage in zip(batches[0].samples.completions(), batches[0].advantages.tolist()):
        one = Samples.of([ids])
        with torch.no_grad():
            student = token_logps(model, [tasks.student_prompt(problem)], one, 1.0)[0].tolist()
            teacher = token_logps(model, [tasks.teacher_prompt(problem)], one, 1.0)[0].tolist()
        for log_s, log_t in zip(student, teacher):
            w = math.exp(math.copysign(1, advantage) * (log_t - log_s))
            by_hand = advantage * (1 - lam + lam * min(max(w, 1 - eps_w), 1 + eps_w))
            row = [float(text) for text in rows.pop(0)]
            p = math.exp(log_s)
            expected = [p, math.exp(log_t), log_t - log_s, w, by_hand, by_hand * (1 - p)]
            assert row == pytest.approx(expected, rel=2e-3, abs=1e-4)
            moved += abs(by_hand - advantage) > 0.01
    assert not rows and (moved > 10) == (lam > 0)


@pytest.mark.parametrize("evidence", ["contrastive", "agreement"])
def test_the_probabilities_shown_are_the_models_whatever_reads_them(tmp_path, capsys, monkeypatch, evidence):
    run = make_run(tmp_path / "run", evidence=evidence, temperature=0.6, privileged="solution")
    batches, problem = spied(monkeypatch), tasks.Problem("47+85", "132", "7+5=12\n4+8=13")
    shown = [[float(x) for x in row[:2]] for row in figures(ask(run, "47+85", capsys=capsys))]
    model, by_hand = sample.load_run(run, trusted(run)).model, []
    for ids in batches[0].samples.completions():
        with torch.no_grad():
            views = [tasks.student_prompt(problem), tasks.teacher_prompt(problem, "solution")]
            scored = [token_logps(model, [view], Samples.of([ids]), 0.6)[0].exp().tolist() for view in views]
        by_hand += map(list, zip(*scored))
    assert len(shown) == len(by_hand) > 0 and all(0 <= x <= 1 for row in shown for x in row)
    assert all(row == pytest.approx(own, rel=2e-3) for row, own in zip(shown, by_hand))


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 1.0]))
def test_the_push_is_the_gradient_at_the_tokens_own_logit(seed, temperature, advantage):
    """Of rlsd_loss, summed over the tokens, by autograd; logits are divided by the temperature first."""
    noise = torch.Generator().manual_seed(seed)
    logits, teacher = (torch.randn(1, 5, 7, generator=noise, dtype=torch.float64) for _ in range(2))
    tokens = torch.randint(7, (1, 5, 1), generator=noise)
    scaled = (logits / temperature).requires_grad_()
    of_tokens = lambda x: x.log_softmax(-1).gather(-1, tokens)[..., 0]
    logps, teacher_logps, A, mask = of_tokens(scaled), of_tokens(teacher), torch.tensor([advantage]), torch.ones(1, 5)
    rlsd_loss(logps, logps.detach(), teacher_logps, A, mask, denominator=1)[0].backward()
    a_hat = token_advantages(A, teacher_logps, logps.detach(), mask)
    push = [Token("", p, 0, 0, 0, a).push for p, a in zip(logps.exp()[0].tolist(), a_hat[0].tolist())]
    assert push == pytest.approx((-scaled.grad.gather(-1, tokens)).flatten().tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("a_hat, p, shown", [(-0.5, 1.0, "-0.0000"), (-0.5, 0.9999, "-0.0000"), (0.0, 0.5, "+0.0000")])
def test_a_push_too_small_for_the_digits_keeps_its_sign(a_hat, p, shown):
    assert Token("", p, 1.0, -0.0, 1.0, a_hat).columns() == [f"{p:.4g}", "1", "+0.0000", "1", f"{a_hat:+.4f}", shown]


def test_without_a_question_the_seed_picks_a_held_out_one(run, capsys):
    held_out = [problem.question for problem in sample.load_run(run, trusted(run)).source.held_out]
    printed = [ask(run, *seed, capsys=capsys) for seed in ([], ["--seed", "0"], ["--seed", "3"], ["--seed", "8"])]
    assert [text.splitlines()[0] for text in printed] == [f"question: {held_out[i]}" for i in (0, 0, 3, 3)]
    assert len(set(held_out)) == 5 and printed[0] == printed[1] and figures(printed[2]) != figures(printed[3])


def test_the_reference_given_is_what_the_teacher_sees(run, capsys):
    told, misled = (figures(ask(run, "47+85", *more, capsys=capsys)) for more in ([], ["--reference", "99"]))
    assert [row[0] for row in told] == [row[0] for row in misled] and [r[1] for r in told] != [r[1] for r in misled]
    assert figures(ask(run, "47+85", "--reference", "132", capsys=capsys)) == told


@pytest.mark.parametrize(
    "fails, reward, says, shown",
    [
        ("False", "float(len(n) == 6)", "group 2: 1 of 4 samples right; those before it had equal rewards: A = 0", 2),
        ("True", 0, "3 groups, and the verifier has failed on every sample", 0),
        ("len(n) <= 8", 0, "3 groups, each of equal rewards (the last: 0 of 4 samples right): A = 0", 1),
        ("len(n) > 4", 0, "3 groups, each of equal rewards (the last: 0 of 4 samples right)", 1),
        ("len(n) <= 9", "len(n) / 12", "group 3: 1 of 3 samples right", 2),  # one of the group is dropped
        ("len(n) <= 8", "(len(n) - 8) // 2 / 2", "group 3: 1 of 4 samples right", 2),  # A = 0 of two of the group
        ("len(n) % 4", 1, "3 groups, each of equal rewards (the last: 1 of 1 samples right)", 1),
    ],
)
def test_groups_are_drawn_until_one_has_both(tmp_path, capsys, monkeypatch, fails, reward, says, shown):
    drawn = noted(monkeypatch, answers, "rollout", lambda *_, step: step)
    run = make_run(tmp_path / "run", on_verifier_error="drop")
    (run / "rules.py").write_text(FAILS.format(fails, reward))
    argv = [str(run), "47+85", "--tries", "3", "--verifier", trusted(run)["verifier"]]
    assert sample.main([*argv, "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert drawn == list(range(1, 3 if "group 2" in says else 4)) and says in out
    assert out.count(": reward ") == out.count("completion: ") == shown and "nan" not in out
    if shown == 1:
        assert "A = +0.0000, no token moved" in out and {row[-1] for row in figures(out)} == {"+0.0000"}
    assert Page((tmp_path / "page.html").read_text(encoding="utf-8")).text.count(": reward ") == 2 * shown


# ---- questions -------------------------------------------------------------------------------------------------------


def test_built_in_questions_are_worked_out(run, tmp_path):
    ask_for = lambda run, text: find_problem(run.source, run.config, text)
    loaded = sample.load_run(run, trusted(run))
    assert ask_for(loaded, " 47 + 85 ") == tasks.Problem("47+85", "132", "7+5=12\n4+8=13")
    assert ask_for(loaded, "999+1") == tasks.Problem("999+1", "1000")
    wordy, again = (find_problem(loaded.source, Config(chain=2, filler=3), "47+85") for _ in "ab")
    assert wordy == again and re.fullmatch(r"[a-h]{3} 7\+5=12\n[a-h]{3} 4\+8=13", wordy.solution)
    countdown = make_run(tmp_path / "run", task="countdown", chain=0, max_new_tokens=56)
    loaded = sample.load_run(countdown, trusted(countdown))
    made = ask_for(loaded, "27 from 8 2 4 3")
    assert made is not None and expression(made.answer, "8 2 4 3 = 27") == 1.0
    assert made.solution is not None and made.solution.count("\n") == 2
    assert ask_for(loaded, "97 from 1 1 1") is None
    packages = dataclasses.replace(loaded.config, task="reasoning_gym:x")  # of those none is made here
    known = loaded.source.held_out[0]
    assert find_problem(loaded.source, packages, known.question) == known
    assert find_problem(loaded.source, packages, "27 from 8 2 4 3") is None


@pytest.fixture
def numbered(tmp_path):
    """A run on a file of four questions."""
    data = tmp_path / "my.jsonl"
    data.write_text("".join(f'{{"question": "q {i}?", "answer": "{i}"}}\n' for i in range(4)))
    return make_run(tmp_path / "run", data=str(data))


def test_a_question_of_the_file_needs_no_answer_and_another_does(numbered, tmp_path, capsys):
    run, html = numbered, tmp_path / "page.html"
    assert "reference answer: 3" in ask(run, "q  3?", capsys=capsys)
    printed = ask(run, "q  3?", "--answer", "x", capsys=capsys)
    assert "reference answer: x" in printed and printed.startswith("question: q 3?\n")
    assert "reference answer: 9" in ask(run, "q 9?", "--answer", "9", capsys=capsys)
    ask(run, "\udcff!", "--answer", "1", "--html", str(html), capsys=capsys)  # as another encoding hands it over
    assert "?!" in Page(html.read_text(encoding="utf-8")).text
    assert re.search(r"question: q \d\?", ask(run, capsys=capsys))
    assert "give its reference answer with --answer" in refused(run, "q 9?", capsys=capsys)


@pytest.mark.parametrize("privileged", ["answer", "solution"])
def test_a_prompt_may_fill_the_room_and_no_more(privileged):
    problem = tasks.Problem("1+1", "2", "1+1=2")
    needed = len(tasks.teacher_prompt(problem, privileged))
    config = Config(privileged=privileged, max_new_tokens=9, max_seq_len=9 + needed)
    assert completed(config, "1+1", problem, "", "") == problem
    with pytest.raises(UserError, match=f"{needed} tokens, and the run has room for {needed - 1}"):
        completed(dataclasses.replace(config, max_seq_len=8 + needed), "1+1", problem, "", "")


def test_a_run_of_a_gpu_is_asked_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    saved = (run := make_run(tmp_path / "run")) / "config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "device": "cuda", "bf16": True}))
    config = sample.load_run(run, trusted(run)).config
    assert (config.device, config.bf16) == ("cpu", False)


def test_interactive_asks_until_an_empty_line_and_survives_a_bad_question(run, capsys, monkeypatch):
    lines = iter(["47+85", "what?", "12+34", "", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert sample.main([str(run), "--interactive", "--verifier", trusted(run)["verifier"]]) == 0
    out, err = capsys.readouterr()
    assert out.count("question: ") == 2 and "reference answer: 46" in out and next(lines) == "never read"
    assert err.count("\n") == 1 and "'what?' is no question of this run's task" in err


def test_interactive_asks_for_an_answer_it_lacks_and_ends_with_the_input(numbered, capsys, monkeypatch):
    lines = ["q 9?", "nine"]
    monkeypatch.setattr("builtins.input", lambda prompt: lines.pop(0) if lines else exec("raise EOFError"))
    assert "reference answer: nine" in ask(numbered, "--interactive", capsys=capsys)


# ---- how it looks ----------------------------------------------------------------------------------------------------

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\x1b[2J\x07", "‮abc", "&amp;"]
HOSTILE += ["</span>\n", "$title"]


def hostile(advantage):
    tokens = [Token(text, 0.5, 0.9, 0.588, 1.8, advantage * 1.1) for text in HOSTILE]
    return Sample(float(advantage > 0), advantage, tokens)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_text_is_text_on_the_page():
    text = page("<b>title</b> $low", ["<i>fact</i>"], [hostile(1.0), hostile(-1.0)], Config())
    read = Page(text)
    allowed = "html head meta title style body h1 h2 h3 ul li div span section p b i br table caption tr th td code"
    assert {tag for tag, _ in read.tags} <= set(allowed.split())
    allowed = "lang charset http-equiv content name class style tabindex"
    assert {name for _, attrs in read.tags for name in attrs} <= set(allowed.split())
    for shown in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', r"\x1b[2J\x07", r"\u202eabc", "&amp;"):
        farthest = shown == HOSTILE[0]  # of equals the first: its figures are open
        # two samples, each as RLSD, as GRPO, as the push and in the table
        assert read.text.count(shown) == 8 + 2 * farthest, shown
    assert "<b>title</b> $low" in read.text and "<i>fact</i>" in read.text and "$title" in read.text
    assert "\x1b" not in text and "‮" not in text
    assert text.count("</span><br><span") == text.count("<br>") == 6  # in RLSD, GRPO and the push of both samples
    assert dict(read.tags)["meta"] and "default-src 'none'" in text and "://" not in text and "url(" not in text


def test_the_page_says_it_all_without_colour(run, tmp_path, capsys):
    figures = ask(run, "47+85", "--html", str(tmp_path / "page.html"), capsys=capsys)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert figures.endswith(f"\npage: {tmp_path / 'page.html'}\n")
    page, plain = Page(text), lambda part: html.unescape(re.sub(r"<[^>]*>", "", part))
    rows = re.findall(r"^ *(\d+) ('.*') +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", figures, re.M)
    tips = re.findall(r'tabindex="0"[^>]*>(.*?)<span class="tip">(.*?)</span></span>', text)
    assert len(tips) == len(rows) > 10
    shown = re.findall(r'<p class="figures"><b>(.*?)</b> (.*?)</p>', text)
    outlined = re.findall(r'farthest" tabindex="0"[^>]*>(.*?)<span class="tip">(.*?)</span></span>', text)
    assert [[plain(x) for x in pair] for pair in shown] == [[plain(x) for x in pair] for pair in outlined]
    assert len(shown) == page.text.count("plain GRPO: ") == 2
    for (_, *row), (token, tip) in zip(rows, tips):
        assert row[0].strip() == f"'{plain(token)}'"
        names = ("P_S ", " P_T ", " Delta ", " w ", " A_hat ", " push ")
        w, clipped = float(row[4]), re.findall(r" → (\S+)", plain(tip))
        assert clipped == (["0.8"] if w < 0.8 else ["1.2"] if w > 1.2 else [])
        assert re.sub(r" → \S+", "", plain(tip)) == "".join(map("".join, zip(names, row[1:])))
    cells = lambda line: [plain(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", line)]
    lines, head = re.findall(r"<tr.*?</tr>", text), ["", "token", *NAMES]
    table = list(map(cells, lines))
    assert [row for row in table if row != head] == [list(map(str.strip, row)) for row in rows]
    assert table.count(head) == 2 and list(map(plain, lines)) == list(map("".join, table))
    assert {"raised", "lowered"} <= {attrs.get("class") for tag, attrs in page.tags if tag == "section"}
    assert "every token raised (+)" in page.text and "every token lowered (-)" in page.text


def test_colour_on_a_terminal_alone_and_not_under_no_color(run, capsys, monkeypatch):
    assert "\x1b" not in ask(run, "47+85", capsys=capsys)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = ask(run, "47+85", capsys=capsys)
    assert "\x1b[48;5;" in coloured and "Delta" not in coloured
    assert coloured.count("A_hat / A: raised (+)") == 1 and coloured.count("\nits push, ") == 2
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert "\x1b" not in ask(run, "47+85", capsys=capsys)


PAINT = re.compile(r"\x1b\[48;5;(\d+);38;5;(\d+)m|\x1b\[0m")


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_on_a_terminal_the_model_paints_nothing_itself(advantage):
    credit, _, push = terminal.both_shades(hostile(advantage), Config())
    assert "48;5;" + str(terminal.INK[int(advantage)][4]) in credit != push  # x1.1; the push of P_S 0.5 is half of it
    for painted in (credit, push):
        plain = PAINT.sub("", painted)
        assert plain == "".join(map(visible, HOSTILE)).replace("↵", "↵\n") and plain.replace("\n", "").isprintable()
        assert set(re.findall(r"48;5;(\d+)", painted)) <= set(map(str, terminal.INK[int(advantage)]))


def test_blue_raises_orange_lowers_and_more_is_darker():
    """Of the 256 colours those from 16 on are a cube of 6 x 6 x 6, blue last, and then greys. The key has them all."""
    key = terminal.colour_key(Config(rlsd_lambda=0.5, rlsd_reweight_clip_range=0.5))
    scale = " x0.75     x1: plain GRPO     x1.25 "
    assert PAINT.sub("", key) == f"A_hat / A: raised (+) {scale} lowered (-) {scale}"
    shades = [(int(ground), text) for ground, text in PAINT.findall(key) if ground]
    assert [text for _, text in shades] == (["16"] * 4 + ["231"]) * 2  # white on the darkest alone
    red, blue = (lambda c: (c - 16) // 36), (lambda c: (c - 16) % 6)
    for sign, of_sign, more, less in ((1, shades[:5], blue, red), (-1, shades[5:], red, blue)):
        grounds = [ground for ground, _ in of_sign]
        assert grounds == list(terminal.INK[sign]) and all(more(c) >= less(c) for c in grounds)
        assert more(grounds[-1]) > less(grounds[-1]) + 2
    assert min(terminal.INK[0]) >= 232


@pytest.mark.parametrize("a_hat", [[1.25, 1.0, 0.5], [0.75, 1.5, 1.24]])
def test_the_page_outlines_the_token_farthest_from_plain_grpo(a_hat):
    """To either side; its figures stand above the text. Bold: half the way to a bound, or farther."""
    one = Sample(1.0, 1.0, [Token(f"t{i}", 0.5, 0.5, 0.0, a, a) for i, a in enumerate(a_hat)])
    text = page("title", [], [one], Config(rlsd_lambda=1.0, rlsd_reweight_clip_range=0.5))
    far = max(range(3), key=lambda i: abs(a_hat[i] - 1))
    assert f'<p class="figures"><b>t{far}</b>' in text and re.findall(r'farthest"[^>]*>(t\d)', text) == [f"t{far}"]
    bold = [abs(a - 1) >= 0.25 for a in a_hat]
    kinds = [["t", *["far"] * is_bold, *["farthest"] * (i == far)] for i, is_bold in enumerate(bold)]
    assert [kind.split() for kind in re.findall(r'<span class="([^"]*)" tabindex', text)] == kinds
    assert re.findall(r'<tr( class="far")?><td>', text) == [' class="far"' * of for of in bold]


def test_depth_runs_from_bound_to_bound():
    for lam, eps_w, low, high in ((0.5, 0.2, 0.9, 1.1), (1.0, 4.0, 0.0, 5.0), (0.25, 4.0, 0.75, 2.0)):
        config = Config(rlsd_lambda=lam, rlsd_reweight_clip_range=eps_w)
        assert bounds(config) == pytest.approx((low, high))
        for sign in (1.0, -1.0):
            at = lambda m: depth(Sample(1.0, sign, []), Token("", 1, 1, 0, 1, sign * m), config)
            assert [at(m) for m in (low, 1.0, high)] == pytest.approx([-1, 0, 1])
            assert at((1 + high) / 2) == pytest.approx(0.5)
    assert depth(Sample(1.0, 1.0, []), Token("", 1, 1, 0, 1, 1.0), Config(rlsd_lambda=0.0)) == 0


def test_the_shade_of_a_push_runs_from_none_to_the_greatest():
    for sign in (2.0, -2.0):
        at = lambda a_hat, p: push_depth(Sample(1.0, sign, []), Token("", p, 1, 0, 1, a_hat * sign), Config())
        assert [at(1.1, 0.0), at(1.1, 0.5), at(0.9, 1.0)] == pytest.approx([1, 0, -1])
        assert at(1.0, 0.3) == pytest.approx(2 * 0.7 / 1.1 - 1)
    assert push_depth(Sample(1.0, 0.0, []), Token("", 0.3, 1, 0, 1, 0.0), Config()) == -1


def test_a_pipe_gets_the_text_of_each_sample_too(run, capsys, monkeypatch):
    drawn = spied(monkeypatch)
    printed = ask(run, "47+85", capsys=capsys)
    texts = [visible(tasks.decode(tokens)) for tokens in drawn[0].samples.completions()]
    assert printed.startswith("question: 47+85\n") and len(texts) == 2
    assert re.findall(r"^completion: (.*)$", printed, re.MULTILINE) == texts
    assert "\n\nright: reward 1, " in printed and "\n\nwrong: reward 0, " in printed
    assert re.search(r", seed 0, group 1: \d of 4 samples right$", printed, re.MULTILINE)
    odd = Sample(1.0, 1.0, hostile(1.0).tokens, "".join(HOSTILE) + "\u2028\u200b\nwrong: reward 0")
    text = terminal.as_figures(odd)
    _, names, *rows = text.split("\n")
    assert all(line.isprintable() for line in text.split("\n")) and names.split() == ["token", *NAMES]
    assert [row.split()[0] for row in rows] == [str(t + 1) for t in range(len(HOSTILE))]


# ---- what it runs, and where it writes -------------------------------------------------------------------------------


def snapshot(*folders):
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_makes_no_code_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "rules.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef check(c, a):\n    return 1.0\n")
    assert sample.main([str(run), "47+85"]) == 2
    err, again = capsys.readouterr().err, f"--verifier {shlex.quote(f'{run}/rules.py:check')}"
    assert err.count("\n") == 1 and again in err and not (tmp_path / "ran").exists()
    assert sample.main([str(run), "47+85", "--verifier", "number", "--tries", "1"]) == 0  # a built-in one is no code
    assert not (tmp_path / "ran").exists()


def test_a_run_that_was_copied_is_all_that_is_read_and_nothing_is_written(tmp_path, capsys):
    original = make_run(tmp_path / "run", on_verifier_error="zero", out=str(tmp_path / "run"))
    (original / "rules.py").write_text(FAILS.format("len(n) % 2", "1"))
    copy = Path(shutil.copytree(original, tmp_path / "copy"))
    before = snapshot(original, copy)
    argv = [str(copy), "47+85", "--verifier", f"{copy}/rules.py:check"]
    assert sample.main([*argv, "--html", str(tmp_path / "page.HTM")]) == 0
    assert {path: x for path, x in snapshot(original, copy).items() if "pycache" not in str(path)} == before
    assert str(copy / "best.pt") in capsys.readouterr().out


@pytest.mark.parametrize("name", ["best.pt", "config.json", "page", "page.html.txt", ".", ""])
def test_a_page_is_written_over_nothing_else(run, tmp_path, capsys, name):
    assert "the name of a .html file is needed" in refused(run, "47+85", "--html", str(run / name), capsys=capsys)
    (tmp_path / "page.html").symlink_to(run / "best.pt")
    before = snapshot(run)
    ask(run, "47+85", "--html", str(tmp_path / "page.html"), capsys=capsys)
    assert snapshot(run) == before and not (tmp_path / "page.html").is_symlink()


# ---- errors, a line each ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, says",
    [
        (["two words"], "'two words' is no question of this run's task: ask like 4785+3626"),
        (["1" * 40 + "+" + "1" * 40], "tokens, and the run has room for 104"),
        (["--interactive", "1+2"], "leave QUESTION and --answer out"),
        (["--interactive", "--answer", "3"], "leave QUESTION and --answer out"),
        (["1+2", "--tries", "0"], "--tries 0: at least 1"),
        (["1+2", "--rlsd_lambda", "2"], "--rlsd_lambda 2.0: 0.0 to 1.0"),
        (["1+2", "--seed", "-1"], "--seed -1: 0 to"),
        (["1+2", "--color"], "unrecognized arguments: --color (python sample.py --help"),
        (["1+2", "--html", "/nowhere/page.html"], "/nowhere/page.html cannot be written: No such file or directory"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(run, capsys, argv, says):
    assert says in refused(run, *argv, capsys=capsys)


def test_what_the_run_cannot_do_is_one_line(tmp_path, monkeypatch, capsys):
    countdown = make_run(tmp_path / "countdown", task="countdown", chain=0, max_new_tokens=56)
    assert "ask like '27 from 8 2 4 3'" in refused(countdown, "27 from 8", capsys=capsys)
    assert "with --answer" in refused(countdown, "97 from 1 1 1", capsys=capsys)
    number = make_run(tmp_path / "number", verifier="number")
    assert "does not accept the reference answer 'many'" in refused(number, "4+4", "--answer", "many", capsys=capsys)
    solution = make_run(tmp_path / "solution", privileged="solution")
    assert "nothing to show the run's teacher" in refused(solution, "999+1", capsys=capsys)
    assert "question: 999+1" in ask(solution, "999+1", "--reference", "9+1=10", capsys=capsys)
    monkeypatch.setattr(os, "sysconf", lambda name: 64)  # 4 KiB of memory
    assert "memory of 0.0 GiB is too small" in refused(number, "4+4", capsys=capsys)


def test_a_run_that_is_none_or_damaged_is_one_line(tmp_path, capsys):
    assert "holds no config.json: give the folder of a run" in refused(tmp_path, "1+2", capsys=capsys)
    run = make_run(tmp_path / "run")
    checkpoint, config = (run / "best.pt").read_bytes(), json.loads((run / "config.json").read_text())
    for torn in (checkpoint[: len(checkpoint) // 2], b"", b"not torch"):
        (run / "best.pt").write_bytes(torn)
        assert "best.pt is " in refused(run, "1+2", capsys=capsys)
    save({"other": torch.ones(1)}, run / "best.pt")
    assert "best.pt is no checkpoint of this run" in refused(run, "1+2", capsys=capsys)
    weights = torch.load(io.BytesIO(checkpoint))
    huge = {name: 3e37 * x if "norm" in name else x for name, x in weights.items()}
    save(huge, run / "best.pt")  # finite, and what comes of them is not
    assert "best.pt gives no probabilities" in refused(run, "1+2", "--verifier", "number", capsys=capsys)
    (run / "best.pt").unlink()
    assert "holds no best.pt" in refused(run, "1+2", capsys=capsys)
    os.mkfifo(run / "best.pt")  # never opened: it would wait for ever
    assert "holds no best.pt" in refused(run, "1+2", capsys=capsys)
    for change in ({"hidden_size": "wide"}, {"hidden_size": 33}, {"colour": "red"}, {"task": 3}):
        (run / "config.json").write_text(json.dumps({**config, **change}))
        refused(run, "1+2", capsys=capsys)
    for text in ("", "[1]", "{", "{}"):
        (run / "config.json").write_text(text)
        assert "config.json is no configuration of this program" in refused(run, "1+2", capsys=capsys)
