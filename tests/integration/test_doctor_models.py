"""`fitb doctor` with a configuration: shards, contract, a first answer, one step of DeepSpeed."""

from __future__ import annotations

import json

import job

PLAIN = ["--track.wandb", "disabled", "--precision", "fp32"]


def doctor(*words):
    done = job.fitb("doctor", "--json", *words)
    assert done.returncode in (0, 1, 2), done.stderr
    return json.loads(done.stdout)


def test_what_fits_together_answers_and_deepspeed_makes_a_step(quick_flags, tmp_path):
    found = {c["name"]: c for c in doctor("--deep", *quick_flags, "--run_dir", str(tmp_path / "r"))}
    names = ("configuration", "ds_config", "shards", "contract", "teacher forward", "teacher fills")
    for name in (*names, "student forward", "deepspeed"):
        assert found[name]["status"] == "ok", found[name]
    assert "ZeRO 2, fp32 on cpu: one step" in found["deepspeed"]["found"]
    assert not (tmp_path / "r").exists()


def test_a_missing_head_and_another_tokenizer_are_a_line_each_with_its_remedy(
    shards, teacher, tmp_path
):
    from transformers import BertForMaskedLM

    from fitb.corpus.tokenizer import train_tokenizer

    headless = tmp_path / "headless"
    BertForMaskedLM.from_pretrained(teacher).bert.save_pretrained(headless)
    train_tokenizer(["other words than those of the shards"] * 9, 300, headless)
    flags = ["--data.shards", str(shards), "--model.teacher", str(headless)]
    flags += ["--model.student", '{"hidden_size": 32, "num_attention_heads": 4}', *PLAIN]
    lines = [c for c in doctor(*flags) if c["name"] == "contract"]
    assert [line["status"] for line in lines] == ["bad", "bad"], lines
    (tokens,) = [line for line in lines if "fingerprint" in line["found"]]
    (head,) = [line for line in lines if "MLM head" in line["found"]]
    assert tokens["fix"] == "prepare the shards with the teacher's tokenizer"
    assert head["fix"].startswith("use a checkpoint saved from BertForMaskedLM")
