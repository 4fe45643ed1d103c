"""Measures one model with drydock's worker and with lm-evaluation-harness, row by row.

    harness.py WORKER MODEL_FOLDER TEXT

Both get the same questions with choices, texts (pieces of TEXT), and problems in words, from files in lm-eval's own
YAML. Exits with 1 where a log-likelihood differs by more than 1e-3, an answer by a character, or a number at all beyond
that.

Two things are made equal first. lm-eval puts the beginning-of-text token before a text whether the tokenizer does so or
not: here the text begins with it for drydock. And it counts a text's words by white space where drydock counts those
that begin behind that token: words are not compared, bytes are.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import yaml
from worker import run_job

NAME = "SmolLM2-135M-Instruct"
LIKELIHOOD = 1e-3
TEXTS, TEXT_CHARS = 4, 1500
NEW_TOKENS = 80
UNTIL = "\n\n"

CHOICES = [
    ("The capital of France is", ["Paris", "a city on the river Spree", "Rome"], 0),
    ("Water boils at sea level at", ["50 degrees Celsius", "100 degrees Celsius", "0 degrees"], 1),
    ("Question: Which animal barks?\nAnswer:", ["the dog", "the cat", "the goldfish in its bowl"], 0),
    # White space at the end, of either kind, and letters of several bytes.
    ("The opposite of hot is ", ["warm", "cold"], 1),
    ("Q: 2 + 2 = ?\nA:\n", ["three", "four", "twenty-two"], 1),
    ("In German, \"beautiful\" is", ["schön", "hässlich", "müde", "böse"], 0),
    ("A café is where one drinks", ["coffee", "crème brûlée à la carte", "naïveté"], 0),
    ("She put on her coat because it was", ["cold outside", "green", "a Tuesday"], 0),
]
PROBLEMS = [
    ("Tom has 3 apples and buys 5 more. How many apples has he?", 8),
    ("A box holds 12 eggs. How many eggs are in 4 boxes?", 48),
    ("Anna has $20 and spends $7. How much is left?", 13),
    ("There are 30 children in 5 equal groups. How many are in a group?", 6),
    ("A train goes 60 miles an hour. How far does it go in 3 hours?", 180),
    ("Ben reads 15 pages a day. How many pages does he read in a week?", 105),
]
SOLVED = "Question: Sam has 2 pens and finds 4. How many pens has he?\nAnswer: 2 + 4 = 6\n#### 6\n\n"


def choice_rows() -> list[dict]:
    return [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in CHOICES]


def problem_rows() -> list[dict]:
    return [
        {"prompt": f"{SOLVED}Question: {question}\nAnswer:", "completion": f" #### {number}"}
        for question, number in PROBLEMS
    ]


def text_rows(path: Path) -> list[dict]:
    text = path.read_text()
    return [{"text": text[at * TEXT_CHARS : (at + 1) * TEXT_CHARS].strip()} for at in range(TEXTS)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numeric_metric() -> dict:
    """As lm-eval's `gsm8k` compares numbers."""
    return {
        "metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
        "ignore_punctuation": False, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
    }


def numeric_filter(name: str, pattern: str, **more: int) -> dict:
    steps = [{"function": "regex", "regex_pattern": pattern, **more}, {"function": "take_first"}]
    return {"name": name, "filter": steps}


def configurations(files: dict[str, Path]) -> list[dict]:
    own = {
        "choice": {
            "output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": name} for name in ["acc", "acc_norm", "acc_bytes"]],
        },
        "text": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in ["byte_perplexity", "bits_per_byte"]],
        },
        "problem": {
            "output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": "completion",
            "generation_kwargs": {"until": [UNTIL], "do_sample": False, "max_gen_toks": NEW_TOKENS},
            "metric_list": [numeric_metric()],
            "filter_list": [
                numeric_filter("strict-match", "#### (\\-?[0-9\\.\\,]+)"),
                numeric_filter("flexible-extract", "(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
            ],
        },
    }
    return [
        {
            "task": f"drydock_{name}", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(files[name])}}, "metadata": {"version": 1}, **config,
        }
        for name, config in own.items()
    ]


def by_harness(model: Path, files: dict[str, Path], folder: Path) -> dict:
    """Numbers and samples, by the names of the files."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (folder / "yaml").mkdir()
    for config in configurations(files):
        (folder / "yaml" / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    known = TaskManager(include_path=str(folder / "yaml"), include_defaults=False)
    found = simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1),
        tasks=[f"drydock_{name}" for name in files], task_manager=known, log_samples=True, bootstrap_iters=0,
    )
    return {name: (found["results"][f"drydock_{name}"], found["samples"][f"drydock_{name}"]) for name in files}


def by_drydock(worker: str, model: Path, rows: list[dict], measure: str, folder: Path, **options: object) -> tuple:
    dataset = write_rows(folder / "rows" / "rows.jsonl", rows).parent
    evaluate = {"model": NAME, "dataset": "rows", "measures": [measure], "log_samples": len(rows), **options}
    inputs = {"model": {"path": str(model), "name": NAME}, "dataset": str(dataset)}
    run_job(worker, {"evaluate": evaluate}, inputs, folder)
    numbers = json.loads((folder / "out" / "results.json").read_text())["results"][measure]
    samples = (folder / "out" / f"samples_{measure}.jsonl").read_text().splitlines()
    return numbers, [json.loads(sample)["models"][NAME] for sample in samples]


def by_row(samples: list[dict]) -> list[dict]:
    return sorted(samples, key=lambda sample: sample["doc_id"])


def compare_numbers(what: str, ours: dict, theirs: dict, keys: list[str], most: float) -> None:
    for key in keys:
        print(f"  {what} {key}: drydock {ours[key]:.6f}, lm-eval {theirs[key]:.6f}")
        if abs(ours[key] - theirs[key]) > most * max(1.0, abs(theirs[key])):
            sys.exit(f"{what}: {key} differs")


def compare_likelihoods(what: str, ours: list[float], theirs: list[float]) -> None:
    furthest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"  {what}: {len(ours)} log-likelihoods, at most {furthest:.1e} apart")
    if furthest > LIKELIHOOD:
        sys.exit(f"{what}: log-likelihoods differ: {ours} and {theirs}")


def compare_choices(ours: tuple, theirs: tuple) -> None:
    likelihoods = [float(answer[0][0]) for sample in by_row(theirs[1]) for answer in sample["resps"]]
    compare_likelihoods("choices", [value for sample in ours[1] for value in sample["resps"]], likelihoods)
    compare_numbers("choices", ours[0], theirs[0], ["acc,none", "acc_norm,none", "acc_bytes,none"], 1e-9)


def compare_texts(ours: tuple, theirs: tuple) -> None:
    likelihoods = [float(sample["resps"][0][0]) for sample in by_row(theirs[1])]
    compare_likelihoods("texts", [-sample["loss"] for sample in ours[1]], likelihoods)
    compare_numbers("texts", ours[0], theirs[0], ["byte_perplexity,none", "bits_per_byte,none"], 1e-5)


def compare_problems(ours: tuple, theirs: tuple) -> None:
    first = [sample for sample in theirs[1] if sample["filter"] == "strict-match"]
    for own, other in zip(ours[1], by_row(first), strict=True):
        if own["resps"] != other["resps"][0][0]:
            sys.exit(f"problems: drydock answers {own['resps']!r}, lm-eval {other['resps'][0][0]!r}")
    print(f"  problems: {len(first)} answers, the same to the letter")
    compare_numbers("problems", ours[0], theirs[0], ["exact_match,strict-match", "exact_match,flexible-extract"], 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    begin = tokenizer.bos_token or tokenizer.eos_token
    rows = {"choice": choice_rows(), "text": text_rows(args.text), "problem": problem_rows()}
    begun = [{"text": begin + row["text"]} for row in rows["text"]]
    generate = {"max_new_tokens": NEW_TOKENS, "until": [UNTIL]}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        measured = lambda *rest, **options: by_drydock(args.worker, args.model, *rest, **options)
        ours = {
            "choice": measured(rows["choice"], "multiple_choice", folder / "choice"),
            "text": measured(begun, "perplexity", folder / "text", max_seq_length=2048),
            "problem": measured(rows["problem"], "numeric_match", folder / "problem", **generate),
        }
        files = {name: write_rows(folder / "files" / name / "rows.jsonl", some) for name, some in rows.items()}
        theirs = by_harness(args.model, files, folder)
    compare_choices(ours["choice"], theirs["choice"])
    compare_texts(ours["text"], theirs["text"])
    compare_problems(ours["problem"], theirs["problem"])
    print("lm-evaluation-harness has the same numbers")


if __name__ == "__main__":
    main()
