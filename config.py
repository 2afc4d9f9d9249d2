"""The options of a run: one dataclass, in the groups that --help shows."""

import dataclasses
from dataclasses import dataclass

METHODS = ("rlsd", "grpo", "opsd", "sdpo", "grpo+opsd", "opd")

# What suits a model that already speaks: no warm start, small steps, room for words.
INIT: dict = {"warm_steps": 0, "warm_batch": 8, "warm_lr": 1e-4, "lr": 1e-6, "max_new_tokens": 256, "max_seq_len": 1024}

# What is appended to each question for a published model, unless --instruction says otherwise.
INSTRUCTION = "End your reply with #### and the final answer, like this: #### 5"


# The first option of each group, and what --help calls the group.
GROUPS = {
    "task": "problems",
    "init": "model",
    "warm_steps": "warm start",
    "method": "RL step",
    "rlsd_lambda": "RLSD",
    "opsd_beta": "other methods",
    "out": "run",
}


def option(default, help, choices=None, low=None, high=None):
    """A field of Config that is also a command-line option; low <= value <= high is checked."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass
class Config:
    task: str = option("addition", "built-in problems: addition, countdown; or reasoning_gym:NAME, of that package")
    chain: int = option(0, "reasoning steps of a built-in problem (digits, numbers); 0: the task's own", low=0, high=20)
    filler: int = option(0, "letters of free choice before each reasoning step of a built-in problem", low=0, high=20)
    data: str = option("", "JSONL file of your own problems: question, answer, and optionally solution, a line each")
    eval_data: str = option("", "JSONL file of held-out problems (--eval_problems of them); all of --data then trains")
    eval_problems: int = option(500, "held-out problems", low=1, high=10**6)
    verifier: str = option("", "exact, number, choice, expression, math_verify, my_rules.py:check; empty: the task's")
    verifier_timeout: float = option(300.0, "seconds a call of your own may take, 0: no limit", low=0.0, high=86400.0)
    on_verifier_error: str = option("stop", "if it fails: stop, reward zero, drop the sample", ("stop", "zero", "drop"))
    privileged: str = option("answer", "what the teacher is shown", ("answer", "solution"))
    privileged_key: str = option("", "show the teacher the text under this key of --data instead")

    init: str = option("", f"folder of a published Llama or Qwen model to start from; defaults are then {INIT}")
    dtype: str = option("float32", "of --init; bfloat16: half memory, small steps by chance", ("float32", "bfloat16"))
    instruction: str = option(INSTRUCTION, "with --init: what is appended to each question; empty: nothing")
    system: str = option("", "with --init: the system prompt; empty: the chat template's own, if it has one")
    thinking: str = option("default", "with --init: the chat template's thinking switch", ("default", "on", "off"))
    date: str = option("", "with --init: the day that a chat template may tell, YYYY-MM-DD; empty: the run's first")
    hidden_size: int = option(64, "width of the model, a multiple of 32", low=32, high=2**15)
    num_layers: int = option(2, "layers of the model", low=1, high=1000)
    max_seq_len: int = option(256, "longest prompt + completion, in tokens", low=1, high=2**20)
    gradient_checkpointing: bool = option(False, "keep less for the backward pass, and compute it again")

    warm_steps: int = option(-1, "supervised steps before RL; -1: 700, or fewer for little --data", low=-1, high=10**9)
    warm_batch: int = option(128, "sequences a supervised step", low=1, high=2**20)
    warm_lr: float = option(6e-3, "peak learning rate of the warm start", low=1e-9, high=1.0)
    warm_teacher_share: float = option(0.5, "share of supervised examples in the teacher's view", low=0.0, high=1.0)
    warm_slip: float = option(0.8, "probability of a slip in the student's worked examples", low=0.0, high=1.0)
    warm_teacher_slip: float = option(0.5, "the same in the teacher's, whose reference they lead to", low=0.0, high=1.0)
    warm_cite: float = option(0.0, "share of the teacher's examples that cite the reference first", low=0.0, high=1.0)
    warm_solutions: float = option(-1.0, "share of them shown a solution; -1: as --privileged", low=-1.0, high=1.0)
    marker: str = option("####", "stands before the answer in supervised examples; empty: nothing")
    warm_seed: int = option(-1, "seed of the weights and the warm start; -1: as --seed", low=-1, high=2**63 - 1)
    warm_dir: str = option("runs/warm_start", "where finished warm starts are kept and found again")

    method: str = option("rlsd", "how samples become an update (loss_of in train.py)", METHODS)
    steps: int = option(200, "updates; 0: evaluate and end", low=0, high=10**9)
    prompts_per_step: int = option(16, "questions an update", low=1, high=2**20)
    group_size: int = option(16, "samples a question", low=2, high=2**20)
    max_new_tokens: int = option(64, "longest completion, in tokens", low=1, high=2**20)
    temperature: float = option(1.0, "of sampling and of every log-probability", low=1e-3, high=100.0)
    lr: float = option(2e-4, "learning rate of Adam", low=1e-9, high=1.0)
    max_grad_norm: float = option(1.0, "gradient clipping", low=1e-9, high=1e9)
    micro_batch: int = option(0, "samples a forward and backward pass, 0: all; same gradient", low=0, high=2**20)
    micro_tokens: int = option(0, "tokens a pass, padded prompts too, 0: all; also in evaluations", low=0, high=2**31)
    halve_micro_batch: bool = option(False, "when the GPU's memory does not suffice, go on with half of --micro_batch")

    rlsd_lambda: float = option(0.5, "weight of the self-distilled credit", low=0.0, high=1.0)
    rlsd_reweight_clip_range: float = option(0.2, "eps_w: evidence weights are clipped to 1 +- this", low=0.0, high=1e9)
    rlsd_lambda_warmup_steps: int = option(0, "updates over which lambda rises from 0", low=0, high=10**9)
    rlsd_lambda_decay_steps: int = option(50, "updates over which it then falls to 0; 0 keeps it", low=0, high=10**9)
    rlsd_teacher_sync_interval: int = option(10, "updates between syncs of the teacher; 0: frozen", low=0, high=10**9)
    rlsd_negative_only: bool = option(False, "evidence for samples with A < 0 alone")
    rlsd_thought_only: bool = option(False, "evidence before the answer marker alone")
    evidence: str = option("plain", "reading of the evidence", ("plain", "contrastive", "agreement"))

    opsd_beta: float = option(0.5, "opsd, sdpo: 0 forward KL, 1 reverse KL, between: JSD", low=0.0, high=1.0)
    opsd_weight: float = option(1.0, "grpo+opsd: weight of the opsd loss", low=0.0, high=1e9)
    sdpo_ema: float = option(0.05, "sdpo: share of the policy in the teacher's moving average", low=0.0, high=1.0)
    opd_teacher: str = option("", "opd: folder of the run whose best.pt is the teacher")

    out: str = option("", "folder of the run (default: a new runs/TASK-METHOD-SEED)")
    resume: bool = option(False, "go on with the run in --out from its last checkpoint")
    seed: int = option(0, "seed of weights, problems and sampling", low=0, high=2**63 - 1)
    device: str = option("cpu", "where to run", ("cpu", "cuda"))
    threads: int = option(0, "CPU threads of each process; 0: OMP_NUM_THREADS, or what suits", low=0, high=1024)
    bf16: bool = option(False, "bfloat16 autocast (cuda only)")
    fsdp: bool = option(False, "under torchrun: each process holds a share of weights, gradients and optimizer state")
    look: int = option(
        0, "show so many problems, completions and rewards, and end: nothing is trained", low=0, high=1000
    )
    eval_every: int = option(10, "updates between evaluations on held-out problems", low=1, high=10**9)
    save_every: int = option(50, "updates between checkpoints", low=1, high=10**9)
    export: str = option("best", "with --init: the weights that model/ holds at the end", ("best", "last"))
