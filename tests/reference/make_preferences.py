"""Makes the fixtures in `preferences/`: what TRL's trainers make of pairs and of judged answers.

    pip install torch transformers peft trl safetensors
    python tests/reference/make_preferences.py

The model is that of `llama_lora/tied`, and so are the adapter's values. Each case is `<objective>.json` with the rows in
tokens, the loss, and the rewards, and the gradients in `gradients.safetensors` under the objective's name. Losses are
computed by TRL's own trainers, on batches that their own collators make.
"""

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

HERE = Path(__file__).parent
MODEL = HERE / "llama_lora" / "tied"
OUT = HERE / "preferences"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 512
BETA = 0.3
# Tokens of prompt, better answer and worse answer.
LENGTHS = [(5, 9, 4), (1, 3, 17), (12, 6, 6), (7, 1, 20)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: `w17` is token 17. The end of a text is token 1, padding token 0."""
    vocabulary = {"<pad>": 0, "<end>": 1} | {f"w{id}": id for id in range(2, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>", unk_token="<pad>")


def text(length: int) -> str:
    return " ".join(f"w{id}" for id in torch.randint(2, VOCABULARY, (length,)).tolist())


def pairs() -> list[dict]:
    return [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in LENGTHS]


def load_adapter(model) -> dict[str, torch.nn.Parameter]:
    """Gives the adapter the values that it has in `llama_lora`; returns its parameters by their saved names."""
    values = load_file(MODEL / "lora.safetensors")
    trained = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(values[f"start.{name}"])
    return trained


def measure(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the first batch, and its gradients."""
    parameters = load_adapter(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in parameters.items()}


def rewards(trainer) -> dict[str, float]:
    """What the trainer has noted of the rewards."""
    noted = getattr(trainer, "_metrics", None) or getattr(trainer, "_stored_metrics")
    return {name: float(values[0]) for name, values in noted["train"].items() if name.startswith("rewards/")}


def lora() -> LoraConfig:
    # Rank and alpha of llama_lora.
    return LoraConfig(r=4, lora_alpha=6.0, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM")


def arguments(config, folder: str, **more):
    return config(
        output_dir=folder, per_device_train_batch_size=len(LENGTHS), beta=BETA, report_to=[], use_cpu=True, bf16=False,
        max_length=128, remove_unused_columns=False, gradient_checkpointing=False, dataloader_num_workers=0,
        dataloader_pin_memory=False, train_sampling_strategy="sequential", **more,
    )


def trained_by(trainer_class, config, rows: list[dict], folder: str, **more):
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    return trainer_class(
        model=model, args=arguments(config, folder, **more), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(), peft_config=lora(),
    )


def row(prompt: list[int], answer: list[int]) -> dict:
    return {"ids": prompt + answer, "counts": [False] * len(prompt) + [True] * len(answer)}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(7)
    rows, gradients = pairs(), {}
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained_by(DPOTrainer, DPOConfig, rows, folder)
        tokens = list(trainer.train_dataset)
        loss, found = measure(trainer)
        lessons = [
            {"chosen": row(t["prompt_ids"], t["chosen_ids"]), "rejected": row(t["prompt_ids"], t["rejected_ids"])}
            for t in tokens
        ]
        cases["dpo"] = {"beta": BETA, "lessons": lessons, "loss": loss, "rewards": rewards(trainer)}
        gradients |= {f"dpo.{name}": gradient for name, gradient in found.items()}

        trainer = trained_by(ORPOTrainer, ORPOConfig, rows, folder)
        tokens = list(trainer.train_dataset)
        loss, found = measure(trainer)
        lessons = [
            {
                side: {"ids": t[f"{side}_input_ids"], "counts": [label != -100 for label in t[f"{side}_labels"]]}
                for side in ["chosen", "rejected"]
            }
            for t in tokens
        ]
        cases["orpo"] = {"beta": BETA, "lessons": lessons, "loss": loss, "rewards": rewards(trainer)}
        gradients |= {f"orpo.{name}": gradient for name, gradient in found.items()}

        judged = [
            {"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good}
            for pair, good in zip(rows, [True, False, False, True])
        ]
        trainer = trained_by(KTOTrainer, KTOConfig, judged, folder)
        tokens = list(trainer.train_dataset)
        loss, found = measure(trainer)
        lessons = [{"answer": row(t["prompt_ids"], t["completion_ids"]), "good": t["label"]} for t in tokens]
        cases["kto"] = {"beta": BETA, "lessons": lessons, "loss": loss, "rewards": rewards(trainer)}
        gradients |= {f"kto.{name}": gradient for name, gradient in found.items()}
    for name, case in cases.items():
        (OUT / f"{name}.json").write_text(json.dumps(case) + "\n")
        print(name, case["loss"], case["rewards"])
    save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, OUT / "gradients.safetensors")


if __name__ == "__main__":
    main()
