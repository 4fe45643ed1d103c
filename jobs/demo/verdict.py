"""Says in one line whether a finetuned and a quantized model are better than the model they come from.

Reads an evaluation, as `get_job` answers, from stdin: perplexities of base, adapter and quantized model, in this order,
and their differences to the base on the same rows.
"""

import json
import sys


def main() -> None:
    scores = json.load(sys.stdin)["scores"]
    base, adapter, quantized = [score for score in scores if score["metric"] == "perplexity"]
    gain = {score["model"]: score for score in scores if score["metric"] == "perplexity_difference"}
    print(
        f"{word(gain[adapter['model']])} Perplexity on {base['rows']} held-out rows: {base['value']:.1f} before, "
        f"{adapter['value']:.2f} with the adapter, {quantized['value']:.2f} quantized to Q4_K_M."
    )


def word(difference: dict) -> str:
    """Lower is better; less than two standard errors is nothing to speak of."""
    if abs(difference["value"]) <= 2 * difference["stderr"]:
        return "No clear difference."
    return "Yes, it got better." if difference["value"] < 0 else "No, it got worse."


if __name__ == "__main__":
    main()
