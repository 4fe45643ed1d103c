"""How a training's speed grows with the GPUs that it has, each with as many rows of a step as one alone."""

import statistics
import subprocess
from collections.abc import Callable

# The worker's most, and how many there are where they are emulated.
MOST, EMULATED = 8, 2


def alike(emulated: bool) -> int:
    """How many GPUs there are of the first one's name: a job gets no others."""
    if emulated:
        return EMULATED
    told = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    names = told.stdout.splitlines()
    return min(names.count(names[0]), MOST) if names else 0


def scaling(title: str, work: Callable[[int], list[float] | str], gpus: int) -> dict:
    """Speeds on 1, 2, 4 and so on up to all GPUs; `work` gives those of its runs on so many, or why there are none."""
    result = {"title": title, "tokens_per_second": {}, "unmeasured": {}}
    for count in sorted({1, gpus} | {2 ** power for power in range(4) if 2 ** power <= gpus}):
        runs = work(count)
        if isinstance(runs, str):
            result["unmeasured"][f"{count} GPUs"] = runs
        else:
            result["tokens_per_second"][count] = statistics.median(runs)
    return result


def line(result: dict) -> str:
    speeds = result["tokens_per_second"]
    shown = []
    for count, speed in speeds.items():
        share = f" ({speed / speeds[1] / count:.0%})" if count > 1 and 1 in speeds else ""
        shown.append(f"{count}: {speed:,.0f}{share}")
    return f"{result['title']:<34} {'  '.join(shown)}"
