"""The benchmark for a GPU, run dry: what can go wrong without one does so here."""

import json

import pytest
from tests.bench import gpu


@pytest.mark.slow
def test_it_runs_dry_and_decides_on_the_cpu_as_on_the_cpu(capsys):
    assert gpu.main(["--dry"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["device"] == "cpu" and {r["precision"] for r in found["rows"]} <= {"single", "half"}
    (single,) = [r for r in found["rows"] if r["precision"] == "single"]
    assert single["pixels"] == 28 and single["flips"] == 0
    assert all(single[name] > 0 for name in ("product", "bare", "compiled", "p99 ms", "flops", "memory"))
