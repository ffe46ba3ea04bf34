"""Odd options, damaged files and commands that are cut short break no promise of the commands."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = os.environ.get("FAULTS_CASES", "2000")
SEED = os.environ.get("FAULTS_SEED", "0")


def failures(folder, *arguments):
    """The failures of `python -m tests.faults`, each with what makes it again."""
    out = folder / "faults.json"
    command = [sys.executable, "-m", "tests.faults", *arguments, "--seed", SEED, "--out", out]
    ended = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert out.exists(), ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    return [(one["again"], one["line"], one["broken"]) for g in found for one in g["failures"]]


def test_a_sample_of_faults_breaks_no_promise(tmp_path):
    """Of quick commands; all commands, and moments, which none draws twice, are slow tests."""
    quick = ("--commands", "tables", "recipes", "evaluate", "--cases", 20)
    assert not failures(tmp_path, "options", "files", *quick)


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["options", "files", "moments"])
def test_thousands_of_faults_break_no_promise(generator, tmp_path):
    assert not failures(tmp_path, generator, "--cases", CASES)
