"""What W&B writes when offline, read back record by record."""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import job

BLOCK = 32 * 1024


def records(path: Path) -> Iterator[bytes]:
    """Payloads of a LevelDB log after W&B's 7-byte header: full, first, middle and last pieces."""
    data, offset, whole = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = BLOCK - offset % BLOCK
        if left < 7:
            offset += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, offset)
        if kind == 0:
            break
        whole += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def history(run_dir: Path) -> tuple[list[dict[str, float]], set[str]]:
    """Logged dictionaries of all attempts in order, and the ids they were logged under."""
    from wandb.proto.wandb_internal_pb2 import Record

    logged, ids = [], set()
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for payload in records(path):
            record = Record()
            record.ParseFromString(payload)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                logged.append(
                    {
                        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
    return logged, ids


def test_wandb_holds_student_and_distillation_losses_as_separate_series_across_attempts(
    quick_flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = [*quick_flags, "--track.wandb", "offline", "--precision", "fp32"]
    assert job.run_and_signal(flags, run, signal.SIGUSR1, at_step=4, rank=0) == 85
    assert job.run(flags, run) == 0
    logged, ids = history(run)
    assert ids == {(run / "wandb_id").read_text().strip()}
    truth = job.metrics(run)
    assert [record["train/step"] for record in logged] == list(range(1, 25))
    layers = ("layer_1", "layer_2")
    names = ["student/loss_mlm", "student/top1", "distill/total", "distill/logits"]
    names += ["distill/embedding", *(f"distill/hidden/{layer}" for layer in layers)]
    names += [f"distill/attention/{layer}" for layer in layers]
    names += ["mask/coverage", "optim/lr", "optim/loss_scale", "optim/grad_norm"]
    names += ["optim/skipped_steps", "perf/tokens_per_s", "perf/mfu", "perf/data_wait_frac"]
    names += ["train/loss"]
    for name in names:
        assert [record[name] for record in logged] == [record[name] for record in truth], name
    assert all(0 < record["perf/mfu"] < 1 for record in logged)
    assert all("val/loss_mlm" in logged[step - 1] for step in (8, 16, 24))


def test_a_wandb_that_cannot_start_does_not_stop_training(
    quick_flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb").write_text("a file where W&B wants its folder")
    flags = [*quick_flags, "--steps", "2", "--track.wandb", "offline", "--run_dir", str(run)]
    done = job.fitb("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "W&B is off" in done.stderr and job.steps(run) == [1, 2]


def test_no_secret_of_the_environment_reaches_logs_or_files(
    quick_flags: list[str], tmp_path: Path
) -> None:
    run, secret = tmp_path / "run", "0123456789abcdef0123456789abcdef01234567"
    env = {"WANDB_API_KEY": secret, "MY_TOKEN": secret, "WANDB_MODE": "offline"}
    flags = [*quick_flags, "--steps", "2", "--track.wandb", "auto", "--run_dir", str(run)]
    done = job.fitb("train", *flags, env=env)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    held = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(held) > 10
    assert [path for path in held if secret.encode() in path.read_bytes()] == []
