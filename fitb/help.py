"""What the help of every command says beside its flags: one line, examples, where its flags are.

Nothing is imported here, so that `fitb --help` costs no more than Python's start. A command has the
name that a user types before its flags.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """The help of one command.

    Args:
        about: one line, as a list of commands shows it; no full stop.
        examples: command lines that parse.
        config: module:class of its flags.
        words: key of that class that plain words fill, without a flag.
        front: module:function that makes the parser of flags of its own, where it hands all others
            to the command whose `config` this is.
        hands_to: that command.
    """

    about: str
    examples: tuple[str, ...]
    config: str = "fitb.config:Config"
    words: str = ""
    front: str = ""
    hands_to: str = ""


PAGES = {
    "fitb doctor": Page(
        "what is missing or wrong on this machine, each with what to type",
        (
            "fitb doctor",
            "fitb doctor --config tinybert4 --model.teacher models/bert --data.shards data/shards",
            'fitb doctor --deep --sbatch "--nodes=2 --partition=low"',
        ),
        front="fitb.doctor.doctor:front",
        hands_to="fitb train",
    ),
    "fitb site": Page(
        "write slurm/site.env: account, partition and so on, from what Slurm says",
        ("fitb site init && . slurm/site.env", "fitb site init --out /shared/site.env --force"),
        config="fitb.site_init:SiteConfig",
        words="action",
    ),
    "fitb scripts": Page(
        "where the batch scripts for sbatch lie, or a copy of them",
        ("fitb scripts", "fitb scripts slurm"),
        config="fitb.cluster.scripts:ScriptsConfig",
        words="out",
    ),
    "fitb prepare": Page(
        "text in, shards and a manifest out: clean, deduplicated, tokenised",
        (
            "fitb prepare --out data/shards        # docstrings of this machine: no download",
            "fitb prepare --out data/shards --source parquet --files+='wikipedia/*.parquet'"
            " --tokenizer models/bert",
            "fitb prepare --out my/shards --source text --files+=mine.txt"
            " --tokenizer runs/tb4/export --add_tokens words.txt",
        ),
        config="fitb.prepare.settings:PrepareConfig",
    ),
    "fitb inspect": Page(
        "statistics and masked examples of shards, for a terminal, as JSON or as a page",
        (
            "fitb inspect data/shards",
            "fitb inspect data/shards --html look.html --mask.strategy span",
        ),
        config="fitb.inspect.inspection:InspectConfig",
        words="shards",
    ),
    "fitb train": Page(
        "begin a run or go on with it (started by srun, submitit, torchrun or alone)",
        (
            "fitb train --config tinybert4 --run_dir runs/tb4 --model.teacher models/bert"
            " --data.shards data/shards",
            "fitb train --config finetune --run_dir runs/mine --model.student runs/tb4/export"
            " --data.shards my/shards --precision bf16",
            "torchrun --nproc-per-node 4 -m fitb train --config tinybert6 --run_dir runs/tb6"
            " --model.teacher models/bert",
        ),
    ),
    "fitb status": Page(
        "where a run stands: attempts, rate, last save, why it stopped",
        ("fitb status runs/tb4", "fitb status runs/tb4 --watch", "fitb status runs/tb4 --json"),
        config="fitb.tools.status:StatusConfig",
        words="run",
    ),
    "fitb report": Page(
        "a run, or several side by side, as one page of HTML, and charts for papers",
        (
            "fitb report runs/tb4",
            "fitb report runs/tb4 runs/control --out compared.html --png figures",
        ),
        config="fitb.report.report_config:ReportConfig",
        words="runs",
    ),
    "fitb rehearse": Page(
        "stop the job on your cluster as Slurm would, and hold its saves against the leads",
        (
            'fitb rehearse --sbatch "--nodes=2 --partition=low" -- --config tinybert4'
            " --run_dir runs/tb4 --model.teacher models/bert",
            "fitb rehearse --cluster local --processes 2 -- --config demo --run_dir runs/try",
        ),
        front="fitb.rehearse.rehearsal:front",
        hands_to="fitb train",
    ),
    "fitb sync": Page(
        "send a run's metrics to Weights & Biases as one run, whatever its attempts did",
        ("fitb sync runs/tb4", "fitb sync runs/tb4 --offline && wandb sync runs/tb4/wandb-merged"),
        config="fitb.sync:SyncConfig",
        words="run",
    ),
    "fitb evaluate": Page(
        "how well a model fills masked positions, beside baselines, with 95 % intervals",
        (
            "fitb evaluate --model runs/tb4/export --shards data/shards",
            "fitb evaluate --model runs/tb4/export --teacher models/bert --json > tb4.json",
            "fitb evaluate --models+='runs/tb4/checkpoints/step-*' --out evals/tb4",
        ),
        config="fitb.evaluate.evaluate_config:EvaluateConfig",
    ),
    "fitb compare": Page(
        "two models on the same rows and masks: paired differences and p-values",
        (
            "fitb compare runs/a/export runs/b/export --shards data/shards",
            "fitb compare runs/a/export runs/b/export --sets.general data/a --sets.mine data/b",
        ),
        config="fitb.evaluate.evaluate_config:CompareConfig",
        words="models",
    ),
    "fitb fill": Page(
        "fill the blanks of sentences: ___ is a word, [MASK] one piece, [SPAN] any number",
        (
            'fitb fill "Returns a ___ of strings." --model runs/tb4/export',
            'fitb fill "She felt ___." --model runs/tb4/export --candidates+=happy'
            " --candidates+=sad",
            "fitb fill - --json --model runs/tb4/export < sentences.txt",
        ),
        config="fitb.infer.config:FillConfig",
        words="texts",
    ),
    "fitb serve": Page(
        "fill blanks over HTTP, and on a page for people",
        (
            "fitb serve runs/tb4/export",
            "fitb serve models/tb4 --teacher models/bert --port 8080",
            "fitb serve models/tb4 --backend onnx-int8 --threads 4",
        ),
        config="fitb.serve.settings:ServeConfig",
        words="model",
    ),
    "fitb export": Page(
        "a model as a Hugging Face folder with its card, and for onnxruntime",
        (
            "fitb export runs/tb4 --out models/tb4",
            "fitb export runs/tb4 --out models/tb4 --int8 --shards data/shards",
            "fitb export runs/tb4/checkpoints/step-0001000 --out models/early --onnx",
        ),
        config="fitb.export:ExportConfig",
        words="source",
    ),
    "fitb plan": Page(
        "what a run will take: time, traffic, checkpoints, losses to preemption",
        (
            "fitb plan --nodes 4 --gpus 8 --tokens 1e10",
            "fitb plan --nodes 2 --gpus 4 --tokens_per_s 52000 --preemptions_per_day 4",
        ),
        config="fitb.plan:PlanConfig",
    ),
    "fitb bench step": Page(
        "tokens per second of training, its parts, MFU; --baseline beside an unfused baseline",
        (
            "srun fitb bench step --precision fp16 --baseline",
            "fitb bench step --processes 2 --length 64 --json",
        ),
        config="fitb.bench.config:StepConfig",
    ),
    "fitb bench comm": Page(
        "latency and bandwidth of the collectives between ranks",
        ("srun fitb bench comm", "fitb bench comm --processes 4 --mb '[1, 31]'"),
        config="fitb.bench.config:CommConfig",
    ),
    "fitb bench infer": Page(
        "filling: student, teacher, onnxruntime, transformers' pipeline, the server",
        ("fitb bench infer", "fitb bench infer --clients 0 --batches '[1, 32]'"),
        config="fitb.bench.config:InferConfig",
    ),
    "fitb bench data": Page(
        "text to shards against the bare tokenizer; rows per second; seek; memory",
        ("fitb bench data", "fitb bench data --mb 32 --repeats 5"),
        config="fitb.bench.config:DataBenchConfig",
    ),
    "fitb demo": Page(
        "the whole road on this machine: corpus, teacher, student, controls",
        ("fitb demo", "fitb demo --out runs/tiny --max_mb 2 --teacher_steps 200 --steps 100"),
        config="fitb.demo:DemoConfig",
    ),
    "fitb completion": Page(
        "the script that lets a shell complete commands, flags, presets and choices",
        (
            "fitb completion bash > ~/.local/share/bash-completion/completions/fitb",
            "source <(fitb completion zsh)        # in ~/.zshrc, after compinit",
        ),
        config="fitb.completion:CompletionConfig",
        words="shell",
    ),
    "python -m launch.prepare": Page(
        "prepare shards as Slurm arrays, or here where there is no Slurm",
        (
            "python -m launch.prepare --tasks 64 --out data/shards --source parquet"
            " --files+='wikipedia/*.parquet' --tokenizer models/bert",
            "sbatch slurm/prepare.sh --tasks 64 --time_min 60 --out data/shards --source text"
            " --files+='text/*.txt' --tokenizer models/bert",
        ),
        config="fitb.prepare.settings:PrepareConfig",
        front="fitb.prepare.slurm:front",
        hands_to="fitb prepare",
    ),
    "python -m launch.distill": Page(
        "distil through submitit; the run directory is runs/JOB_NAME unless --run_dir is given",
        (
            "python -m launch.distill --nodes 4 --tasks_per_node 8 --gpus_per_node 8"
            " --config tinybert4 --run_dir runs/tb4 --model.teacher models/bert",
            "python -m launch.distill --cluster local --tasks_per_node 2 --wait --config demo"
            " --model.teacher runs/demo/teacher/export --data.shards runs/demo/shards",
            "python -m launch.distill --nodes 4 --chain 8 --config tinybert4 --run_dir runs/tb4",
            "python -m launch.distill --nodes 4 --dry_run --config tinybert4 --run_dir runs/tb4",
        ),
        front="launch.distill:front",
        hands_to="fitb train",
    ),
    "python -m launch.evaluate": Page(
        "evaluate through submitit; with --wait and --out the table of all models is printed",
        (
            "python -m launch.evaluate --model runs/tb4/export --shards data/shards",
            "python -m launch.evaluate --array 10 --wait --models+='runs/tb4/checkpoints/step-*'"
            " --out evals/tb4",
        ),
        config="fitb.evaluate.evaluate_config:EvaluateConfig",
        front="launch.evaluate:front",
        hands_to="fitb evaluate",
    ),
}

_HEAD = """usage: fitb COMMAND [flags]

fitb distils BERT into TinyBERT on cluster schedulers, preempted and resumed to the bit.

commands:
"""
_TAIL = """
`fitb COMMAND --help` lists the flags of a command; one that is on or off needs no value. Exit codes
of train: 0 finished, 85 saved and wants to be started again, 93 starting again would not help,
anything else a crash. Exit codes of the other commands: 0 done, 1 rehearsed and not safe, 2
configuration, 3 data or models, 4 machine, 5 training. Of doctor: 0 all fine, 1 warnings, 2
something bad.
"""
_BENCH = "measure, and print medians with their spread"


def benchmarks() -> list[str]:
    """Names of what `fitb bench` measures."""
    return [name.split()[2] for name in PAGES if name.startswith("fitb bench ")]


def commands() -> dict[str, str]:
    """Return each command of `fitb` and its line."""
    lines: dict[str, str] = {}
    for name, page in PAGES.items():
        front, command, *_ = name.split()
        if front == "fitb":
            lines.setdefault(command, _BENCH if command == "bench" else page.about)
    return lines


def overview() -> str:
    """The text of `fitb --help`."""
    return _HEAD + _listed(commands()) + examples(("fitb doctor", "fitb demo")) + _TAIL


def benchmarks_overview() -> str:
    """The text of `fitb bench --help`."""
    lines = {what: PAGES[f"fitb bench {what}"].about for what in benchmarks()}
    shown = ("fitb bench step --baseline", "srun fitb bench comm")
    head = (
        "usage: fitb bench WHAT [flags]\n\nMeasure, and print medians with their spread.\n\nwhat:\n"
    )
    return head + _listed(lines) + examples(shown)


def _listed(lines: dict[str, str]) -> str:
    width = max(len(name) for name in lines) + 1
    return "".join(f"  {name:{width}} {about}\n" for name, about in lines.items())


def examples(lines: tuple[str, ...]) -> str:
    """The last paragraph of a help text."""
    return "\nexamples:\n" + "".join(f"  {line}\n" for line in lines)
