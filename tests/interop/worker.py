"""Runs a job with drydock's worker by hand, without a container: for scripts that look at what comes out."""

import json
import subprocess
import sys
from pathlib import Path


def run_job(worker: str, spec: dict, inputs: dict, folder: Path, threads: int = 2) -> list[dict]:
    """Does the job and returns its reports; artifacts are in `folder / "out"`. Leaves with the failure, if there is one."""
    (folder / "out").mkdir(parents=True)
    events, attempt = folder / "events.jsonl", folder / "spec.json"
    attempt.write_text(json.dumps({
        "contract": 1, "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C", "attempt": 1, "trace_id": "0" * 32, "spec": spec,
        "inputs": inputs, "output": str(folder / "out"), "events": str(events), "threads": threads,
    }))
    done = subprocess.run([worker, "run", str(attempt)], capture_output=True, text=True)
    reports = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    if done.returncode != 0:
        sys.exit(f"the worker failed: {reports[-1] if reports else done.stderr}")
    return reports
