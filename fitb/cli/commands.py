"""The table of commands. A new command is a new row here, and nothing elsewhere.

Help, completion, docs/cli.md and their tests are generated from this table and the parsers.
"""

from __future__ import annotations

from fitb.cli.command_row import Command


def _benchmark(what: str, about: str, examples: tuple[str, ...]) -> Command:
    return Command(
        f"bench {what}",
        about,
        examples,
        config=f"fitb.bench.bench_config:{what.title()}BenchConfig",
        run=f"fitb.bench.{what}:bench",
        render="fitb.bench.timing:render",
    )


_ROWS = (
    Command(
        "doctor",
        "check this machine and name what is missing or wrong, each with the remedy",
        (
            "fitb doctor",
            "fitb doctor --config tinybert4 --model.teacher models/bert --data.shards data/shards",
            'fitb doctor --deep --sbatch "--nodes=2 --partition=low"',
        ),
        hands_to="train",
        launcher="fitb.tools.doctor.doctor:launcher_arguments",
        run="fitb.tools.doctor.doctor:doctor",
        render="fitb.tools.doctor.check:render",
        as_json="fitb.tools.doctor.check:as_json",
        exit_code="fitb.tools.doctor.check:exit_code",
    ),
    Command(
        "site",
        "write slurm/site.env: account, partition and so on, as Slurm reports them",
        ("fitb site init && . slurm/site.env", "fitb site init --out /shared/site.env --force"),
        config="fitb.tools.site_init:SiteConfig",
        positional="action",
        run="fitb.tools.site_init:init",
        render="fitb.tools.site_init:say",
    ),
    Command(
        "scripts",
        "print the folder of the batch scripts, or copy them",
        ("fitb scripts", "fitb scripts slurm"),
        config="fitb.cluster.scripts:ScriptsConfig",
        positional="out",
        run="fitb.cluster.scripts:scripts",
        render="builtins:str",
    ),
    Command(
        "prepare",
        "turn text into shards: clean, deduplicate, tokenise",
        (
            "fitb prepare --out data/shards        # docstrings of this machine: no download",
            "fitb prepare --out data/shards --source parquet --files+='wikipedia/*.parquet'"
            " --tokenizer models/bert",
            "fitb prepare --out my/shards --source text --files+=mine.txt"
            " --tokenizer runs/tb4/export --add_tokens words.txt",
        ),
        config="fitb.corpus.prepare_config:PrepareConfig",
        run="fitb.corpus.prepare:prepare",
        render="builtins:str",
    ),
    Command(
        "inspect",
        "show statistics and masked examples of shards as text, JSON or an HTML page",
        (
            "fitb inspect data/shards",
            "fitb inspect data/shards --html look.html --mask.strategy span",
        ),
        config="fitb.tools.inspect.inspection:InspectConfig",
        positional="shards",
        run="fitb.tools.inspect.inspection:inspect",
        render="fitb.tools.inspect.display:as_text",
    ),
    Command(
        "train",
        "start or resume a run (under srun, submitit, torchrun or alone)",
        (
            "fitb train --config tinybert4 --run_dir runs/tb4 --model.teacher models/bert"
            " --data.shards data/shards",
            "fitb train --config finetune --run_dir runs/mine --model.student runs/tb4/export"
            " --data.shards my/shards --precision bf16",
            "torchrun --nproc-per-node 4 -m fitb train --config tinybert6 --run_dir runs/tb6"
            " --model.teacher models/bert",
        ),
        run="fitb.training.loop:train",
    ),
    Command(
        "status",
        "show the state of a run: attempts, rate, last checkpoint, why it stopped",
        ("fitb status runs/tb4", "fitb status runs/tb4 --watch", "fitb status runs/tb4 --json"),
        config="fitb.tools.status:StatusConfig",
        positional="run",
        run="fitb.tools.status:show",
    ),
    Command(
        "report",
        "write one or several runs as an HTML report, with charts for papers",
        (
            "fitb report runs/tb4",
            "fitb report runs/tb4 runs/control --out compared.html --png figures",
        ),
        config="fitb.tools.report.report_config:ReportConfig",
        positional="runs",
        run="fitb.tools.report.build:report",
        render="fitb.tools.report.build:as_text",
    ),
    Command(
        "rehearse",
        "stop a job on your cluster as Slurm would, and check that it saves in time",
        (
            'fitb rehearse --sbatch "--nodes=2 --partition=low" -- --config tinybert4'
            " --run_dir runs/tb4 --model.teacher models/bert",
            "fitb rehearse --cluster local --processes 2 -- --config demo --run_dir runs/try"
            " --model.teacher runs/demo/teacher/export --data.shards runs/demo/shards",
        ),
        hands_to="train",
        launcher="fitb.tools.rehearse.rehearsal:launcher_arguments",
        run="fitb.tools.rehearse.rehearsal:rehearse",
        render="fitb.tools.rehearse.verdict:render",
        as_json="fitb.tools.rehearse.verdict:as_json",
        exit_code="fitb.tools.rehearse.verdict:exit_code",
    ),
    Command(
        "sync",
        "send the metrics of a run to Weights & Biases as one run over all attempts",
        ("fitb sync runs/tb4", "fitb sync runs/tb4 --offline && wandb sync runs/tb4/wandb-merged"),
        config="fitb.tools.sync:SyncConfig",
        positional="run",
        run="fitb.tools.sync:sync",
        render="builtins:str",
    ),
    Command(
        "evaluate",
        "evaluate masked-token prediction next to baselines, with 95 % intervals",
        (
            "fitb evaluate --model runs/tb4/export --shards data/shards",
            "fitb evaluate --model runs/tb4/export --teacher models/bert --json > tb4.json",
            "fitb evaluate --models+='runs/tb4/checkpoints/step-*' --out evals/tb4",
        ),
        config="fitb.evaluation.evaluate_config:EvaluateConfig",
        run="fitb.cli.functions:evaluate",
        render="fitb.cli.functions:render_evaluation",
    ),
    Command(
        "compare",
        "compare two models on the same rows and masks: paired differences and p-values",
        (
            "fitb compare runs/a/export runs/b/export --shards data/shards",
            "fitb compare runs/a/export runs/b/export --sets.general data/a --sets.mine data/b",
        ),
        config="fitb.evaluation.evaluate_config:CompareConfig",
        positional="models",
        run="fitb.evaluation.compare:compare",
        render="fitb.evaluation.printed:comparison_text",
    ),
    Command(
        "sweep",
        "evaluate the runs of a sweep as one table, with 95 % intervals",
        ("fitb sweep runs/sweep --shards data/shards",),
        config="fitb.tools.sweep_table:SweepConfig",
        positional="folder",
        run="fitb.tools.sweep_table:sweep_table",
        render="fitb.tools.sweep_table:render",
    ),
    Command(
        "fill",
        "fill the blanks of sentences: ___ is a word, [MASK] a subword, [SPAN] any number",
        (
            'fitb fill "Returns a ___ of strings." --model runs/tb4/export',
            'fitb fill "She felt ___." --model runs/tb4/export --candidates+=happy'
            " --candidates+=sad",
            "fitb fill - --json --model runs/tb4/export < sentences.txt",
        ),
        config="fitb.infer.fill_config:FillConfig",
        positional="texts",
        run="fitb.cli.functions:fill",
        render="fitb.infer.fill:render",
        as_json="fitb.infer.fill:as_json",
        ascii=False,
    ),
    Command(
        "serve",
        "fill blanks over HTTP, and on a web page",
        (
            "fitb serve runs/tb4/export",
            "fitb serve models/tb4 --teacher models/bert --port 8080",
            "fitb serve models/tb4 --backend onnx-int8 --threads 4",
        ),
        config="fitb.serve.serve_config:ServeConfig",
        positional="model",
        run="fitb.cli.functions:serve",
    ),
    Command(
        "export",
        "export a model as a Hugging Face folder with a model card, and for onnxruntime",
        (
            "fitb export runs/tb4 --out models/tb4",
            "fitb export runs/tb4 --out models/tb4 --int8 --shards data/shards",
            "fitb export runs/tb4/checkpoints/step-0001000 --out models/early --onnx",
        ),
        config="fitb.tools.export:ExportConfig",
        positional="source",
        run="fitb.tools.export:export",
        render="fitb.tools.export:render",
    ),
    Command(
        "plan",
        "estimate time, traffic, checkpoints and preemption losses of a run",
        (
            "fitb plan --nodes 4 --gpus 8 --tokens 1e10",
            "fitb plan --nodes 2 --gpus 4 --tokens_per_s 52000 --preemptions_per_day 4",
        ),
        config="fitb.tools.plan:PlanConfig",
        run="fitb.tools.plan:plan",
        render="fitb.tools.plan:render",
        as_json="fitb.tools.plan:as_json",
    ),
    _benchmark(
        "step",
        "measure tokens per second of training, its parts and MFU; --baseline adds a baseline",
        (
            "srun fitb bench step --precision fp16 --baseline",
            "fitb bench step --processes 2 --length 64 --json",
        ),
    ),
    _benchmark(
        "comm",
        "measure latency and bandwidth of the collectives between ranks",
        ("srun fitb bench comm", "fitb bench comm --processes 4 --mb '[1, 31]'"),
    ),
    _benchmark(
        "infer",
        "measure filling: student, teacher, onnxruntime, transformers' pipeline, the server",
        ("fitb bench infer", "fitb bench infer --clients 0 --batches '[1, 32]'"),
    ),
    _benchmark(
        "data",
        "measure preparation against the tokenizer alone, rows per second, seek and memory",
        ("fitb bench data", "fitb bench data --mb 32 --repeats 5"),
    ),
    Command(
        "demo",
        "run the whole pipeline on this machine: corpus, teacher, student, controls",
        ("fitb demo", "fitb demo --out runs/tiny --max_mb 2 --teacher_steps 200 --steps 100"),
        config="fitb.tools.demo:DemoConfig",
        run="fitb.tools.demo:demo",
    ),
    Command(
        "completion",
        "print the shell script that completes commands, flags, presets and choices",
        (
            "fitb completion bash > ~/.local/share/bash-completion/completions/fitb",
            "source <(fitb completion zsh)        # in ~/.zshrc, after compinit",
        ),
        config="fitb.cli.completion:CompletionConfig",
        positional="shell",
        run="fitb.cli.completion:script",
        render="builtins:str",
    ),
    Command(
        "launch.prepare",
        "prepare shards in Slurm arrays, or in local processes without Slurm",
        (
            "python -m launch.prepare --tasks 64 --out data/shards --source parquet"
            " --files+='wikipedia/*.parquet' --tokenizer models/bert",
            "sbatch slurm/prepare.sh --tasks 64 --time_min 60 --out data/shards --source text"
            " --files+='text/*.txt' --tokenizer models/bert",
        ),
        config="fitb.corpus.prepare_config:PrepareConfig",
        hands_to="prepare",
        launcher="fitb.corpus.slurm_stages:launcher_arguments",
        run="fitb.corpus.slurm_stages:launch",
    ),
    Command(
        "launch.distill",
        "submit a distillation with submitit; --run_dir defaults to runs/JOB_NAME",
        (
            "python -m launch.distill --nodes 4 --tasks_per_node 8 --gpus_per_node 8"
            " --config tinybert4 --run_dir runs/tb4 --model.teacher models/bert",
            "python -m launch.distill --cluster local --tasks_per_node 2 --wait --config demo"
            " --model.teacher runs/demo/teacher/export --data.shards runs/demo/shards",
            "python -m launch.distill --nodes 4 --chain 8 --config tinybert4 --run_dir runs/tb4",
            "python -m launch.distill --nodes 4 --dry_run --config tinybert4 --run_dir runs/tb4",
        ),
        hands_to="train",
        launcher="fitb.cli.launchers:distill_arguments",
        run="fitb.cli.launchers:distill",
    ),
    Command(
        "launch.sweep",
        "submit a run for each combination of settings; --wait prints their table",
        (
            "python -m launch.sweep --grid.optim.lr '[1e-4, 3e-4]' --grid.objective.hidden '[0, 1]'"
            " --nodes 2 --tasks_per_node 4 --gpus_per_node 4 --config tinybert4"
            " --run_dir runs/sweep --model.teacher models/bert",
            "python -m launch.sweep --random 8 --grid.optim.lr '{low: 1e-5, high: 1e-3, log: true}'"
            " --cluster local --wait --config demo --run_dir runs/sweep"
            " --model.teacher runs/demo/teacher/export --data.shards runs/demo/shards",
        ),
        hands_to="train",
        launcher="fitb.cli.launchers:sweep_arguments",
        run="fitb.cli.launchers:sweep",
    ),
    Command(
        "launch.evaluate",
        "submit an evaluation with submitit; --wait and --out print the table of all models",
        (
            "python -m launch.evaluate --model runs/tb4/export --shards data/shards",
            "python -m launch.evaluate --array 10 --wait --models+='runs/tb4/checkpoints/step-*'"
            " --out evals/tb4",
        ),
        config="fitb.evaluation.evaluate_config:EvaluateConfig",
        hands_to="evaluate",
        launcher="fitb.cli.launchers:evaluate_arguments",
        run="fitb.cli.launchers:evaluate",
    ),
)
COMMANDS = {command.name: command for command in _ROWS}


def benchmarks() -> list[str]:
    """Return the names of the benchmarks."""
    return [name.removeprefix("bench ") for name in COMMANDS if name.startswith("bench ")]
