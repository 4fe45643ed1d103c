//! The jobs of the grid: shapes, what bases are held in, and what is done with them.

use serde_json::{Value, json};

/// A decoder's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    layers: u32,
    hidden: u32,
    heads: u32,
    key_value_heads: u32,
    ffn: u32,
    vocabulary: u32,
}

/// 5M, 24M, 87M and 125M numbers; the last has the widths and the depth of SmolLM2-135M.
const SMALL: Shape =
    Shape { name: "5m", layers: 4, hidden: 256, heads: 4, key_value_heads: 4, ffn: 768, vocabulary: 4096 };
const MEDIUM: Shape =
    Shape { name: "27m", layers: 8, hidden: 512, heads: 8, key_value_heads: 4, ffn: 1536, vocabulary: 8192 };
const WIDE: Shape =
    Shape { name: "87m", layers: 6, hidden: 1024, heads: 16, key_value_heads: 8, ffn: 2816, vocabulary: 16384 };
const DEEP: Shape =
    Shape { name: "125m", layers: 30, hidden: 576, heads: 9, key_value_heads: 3, ffn: 1536, vocabulary: 32768 };
/// 62M numbers, of widths that no other has.
const OTHER: Shape =
    Shape { name: "62m", layers: 12, hidden: 640, heads: 10, key_value_heads: 5, ffn: 1792, vocabulary: 12288 };

impl Shape {
    fn config(self) -> Value {
        json!({
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads, "intermediate_size": self.ffn,
            "max_position_embeddings": 2048,
        })
    }

    /// A training from nothing that leaves a model of this shape after one step.
    pub(crate) fn learnt_from(self, corpus: &str) -> Value {
        json!({"train": {
            "dataset": corpus, "config": self.config(), "vocab_size": self.vocabulary, "max_steps": 1,
            "per_device_train_batch_size": 1, "max_seq_length": 16, "test_size": 0,
        }})
    }
}

/// What a base is held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    F32,
    Bf16,
    Q4KM,
    Q8,
}

impl Base {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q4KM => "q4km",
            Self::Q8 => "q8",
        }
    }

    pub(crate) fn quant_type(self) -> &'static str {
        if self == Self::Q8 { "Q8_0" } else { "Q4_K_M" }
    }
}

/// Rows that are learnt from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    /// Plain text, of which tokenizers are learnt.
    Corpus,
    /// Texts that are longer than what rows are cut to.
    Texts,
    Pairs,
    Labels,
    Choices,
    /// Texts of which most are short and some are not, none of them as long as what rows are cut to.
    Mixed,
}

impl Rows {
    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(crate) fn file(self) -> &'static str {
        if matches!(self, Self::Corpus) { "text.txt" } else { "rows.jsonl" }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::Corpus => words(0, 250_000),
            Self::Texts => lines(12, |i| json!({"text": words(i, 1600)})),
            Self::Pairs => lines(
                8,
                |i| json!({"prompt": words(i, 20), "chosen": words(i + 100, 1600), "rejected": words(i + 200, 1600)}),
            ),
            Self::Labels => {
                lines(12, |i| json!({"prompt": words(i, 20), "completion": words(i + 100, 1600), "label": i % 2 == 0}))
            }
            Self::Mixed => {
                lines(200, |i| json!({"text": words(i, 8 + (i * i * 7 % 40) as usize + 60 * usize::from(i % 29 == 0))}))
            }
            Self::Choices => lines(64, |i| {
                let choices: Vec<String> = (0..4).map(|choice| words(100 + 4 * i + choice, 12)).collect();
                json!({"question": words(i, 40), "choices": choices, "answer": i % 4})
            }),
        }
    }
}

fn lines(count: u64, row: impl Fn(u64) -> Value) -> String {
    (0..count).map(|i| format!("{}\n", row(i))).collect()
}

/// So many words of two to four syllables, some of them often, most of them rarely.
fn words(seed: u64, count: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) % below
    };
    let mut text = String::new();
    for index in 0..count {
        // The smaller of two: the first words of the list come up more often than the last.
        let mut word = next(40_000).min(next(40_000));
        for _ in 0..2 + word % 3 {
            text.push(char::from(b"bdfgklmnprstvz"[(word % 14) as usize]));
            text.push(char::from(b"aeiou"[(word / 14 % 5) as usize]));
            word = word / 3 + 7 * (word % 11);
        }
        text.push_str(if index % 200 == 199 { "\n\n" } else { " " });
    }
    text
}

/// One job of the grid.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) base: Option<Base>,
    pub(crate) rows: Option<Rows>,
    pub(crate) job: Value,
}

/// A finetune of two steps; `more` are options beside these.
fn finetune(shape: Shape, base: Base, method: &str, (batch, length): (u32, u32), more: Value) -> Row {
    let objective = more["objective"].as_str().unwrap_or("sft").to_owned();
    let rows = match objective.as_str() {
        "dpo" | "orpo" => Rows::Pairs,
        "kto" => Rows::Labels,
        _ => Rows::Texts,
    };
    let mut options = json!({
        "method": method, "per_device_train_batch_size": batch, "max_seq_length": length, "max_steps": 2,
        "test_size": 0.1,
    });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let marks: String = more.as_object().unwrap().iter().map(|(name, value)| format!(" {name}={value}")).collect();
    let name = format!("{} {} {method} {batch}x{length}{marks}", shape.name, base.name());
    Row { name, shape, base: Some(base), rows: Some(rows), job: json!({"finetune": options}) }
}

fn train(shape: Shape, (batch, length): (u32, u32), checkpointing: bool) -> Row {
    let name = format!("{} train {batch}x{length} checkpointing={checkpointing}", shape.name);
    let job = json!({"train": {
        "config": shape.config(), "vocab_size": shape.vocabulary, "max_steps": 2, "max_seq_length": length,
        "per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing, "test_size": 0.001,
    }});
    Row { name, shape, base: None, rows: Some(Rows::Corpus), job }
}

fn evaluate(shape: Shape, base: Base, rows: Rows, batch: u32) -> Row {
    let name = format!("{} {} evaluate {rows:?} {batch}", shape.name, base.name());
    let job = json!({"evaluate": {"batch_size": batch}});
    Row { name, shape, base: Some(base), rows: Some(rows), job }
}

fn quantize(shape: Shape, base: Base, quant_type: &str, rows: Option<Rows>) -> Row {
    let with = if rows.is_some() { " with an importance matrix" } else { "" };
    let name = format!("{} {} quantize {quant_type}{with}", shape.name, base.name());
    Row { name, shape, base: Some(base), rows, job: json!({"quantize": {"quant_type": quant_type}}) }
}

/// The grid: forty jobs.
pub(crate) fn rows() -> Vec<Row> {
    let none = || json!({});
    let checkpointing = || json!({"gradient_checkpointing": true});
    let bf16 = || json!({"dtype": "bf16"});
    let objective = |name: &str| json!({"objective": name});
    vec![
        finetune(SMALL, Base::F32, "lora", (4, 128), none()),
        finetune(SMALL, Base::F32, "lora", (8, 512), none()),
        finetune(SMALL, Base::Bf16, "full", (4, 256), none()),
        finetune(SMALL, Base::Q4KM, "lora", (4, 256), none()),
        finetune(SMALL, Base::F32, "dora", (4, 256), none()),
        finetune(MEDIUM, Base::F32, "lora", (4, 256), none()),
        finetune(MEDIUM, Base::F32, "lora", (1, 1024), none()),
        finetune(MEDIUM, Base::F32, "lora", (4, 512), checkpointing()),
        finetune(MEDIUM, Base::F32, "lora", (4, 256), json!({"lora_r": 64, "lora_dropout": 0.1})),
        finetune(MEDIUM, Base::Bf16, "lora", (4, 256), bf16()),
        finetune(MEDIUM, Base::F32, "qlora", (4, 256), none()),
        finetune(MEDIUM, Base::Bf16, "qlora", (2, 512), json!({"base_quant_type": "Q8_0"})),
        finetune(MEDIUM, Base::F32, "dora", (4, 256), none()),
        finetune(MEDIUM, Base::F32, "full", (2, 256), none()),
        finetune(MEDIUM, Base::Q4KM, "lora", (4, 256), none()),
        finetune(MEDIUM, Base::Q8, "lora", (4, 256), none()),
        finetune(MEDIUM, Base::Q4KM, "qlora", (4, 256), checkpointing()),
        finetune(MEDIUM, Base::F32, "lora", (2, 256), objective("dpo")),
        finetune(MEDIUM, Base::F32, "lora", (2, 256), objective("orpo")),
        finetune(MEDIUM, Base::F32, "lora", (4, 256), objective("kto")),
        finetune(WIDE, Base::F32, "lora", (2, 256), none()),
        finetune(WIDE, Base::Bf16, "lora", (2, 512), checkpointing()),
        finetune(WIDE, Base::F32, "qlora", (2, 256), none()),
        finetune(WIDE, Base::Q4KM, "lora", (2, 256), none()),
        finetune(WIDE, Base::Q8, "lora", (2, 256), bf16()),
        finetune(WIDE, Base::Bf16, "full", (1, 256), none()),
        finetune(DEEP, Base::F32, "lora", (1, 512), none()),
        finetune(DEEP, Base::Bf16, "lora", (2, 512), json!({"gradient_checkpointing": true, "dtype": "bf16"})),
        finetune(DEEP, Base::Q4KM, "lora", (1, 512), none()),
        finetune(DEEP, Base::Q8, "qlora", (1, 256), objective("dpo")),
        finetune(DEEP, Base::F32, "full", (1, 128), checkpointing()),
        train(SMALL, (8, 256), false),
        train(MEDIUM, (2, 256), false),
        train(MEDIUM, (8, 256), true),
        evaluate(MEDIUM, Base::F32, Rows::Texts, 4),
        evaluate(WIDE, Base::Q4KM, Rows::Choices, 8),
        evaluate(DEEP, Base::Q8, Rows::Texts, 2),
        quantize(WIDE, Base::F32, "Q4_K_M", None),
        quantize(MEDIUM, Base::Bf16, "Q8_0", None),
        quantize(MEDIUM, Base::F32, "Q4_K_M", Some(Rows::Texts)),
    ]
}

/// Jobs that no constant of the formula was ever looked at with: another shape, other batches and lengths, and other
/// combinations. To be read beside the grid, not as a part of it.
pub(crate) fn beyond() -> Vec<Row> {
    let none = || json!({});
    let checkpointing = || json!({"gradient_checkpointing": true});
    vec![
        finetune(OTHER, Base::F32, "lora", (3, 320), none()),
        finetune(OTHER, Base::Q8, "qlora", (6, 192), checkpointing()),
        finetune(OTHER, Base::Q4KM, "dora", (2, 384), none()),
        finetune(OTHER, Base::Bf16, "full", (1, 448), json!({"dtype": "bf16"})),
        finetune(OTHER, Base::Bf16, "lora", (2, 192), json!({"objective": "orpo"})),
        finetune(MEDIUM, Base::F32, "lora", (16, 96), none()),
        finetune(SMALL, Base::F32, "lora", (12, 192), checkpointing()),
        finetune(WIDE, Base::Q8, "lora", (1, 768), json!({"lora_r": 32})),
        train(OTHER, (4, 192), false),
        evaluate(OTHER, Base::Q4KM, Rows::Texts, 4),
        evaluate(SMALL, Base::Q8, Rows::Choices, 4),
        quantize(OTHER, Base::F32, "Q5_K_M", None),
    ]
}

/// Jobs on rows of mixed lengths, which a preview has seen before they are planned.
pub(crate) fn mixed() -> Vec<Row> {
    let none = || json!({});
    let of = |row: Row| {
        let mut row = Row { rows: Some(Rows::Mixed), name: format!("{} mixed", row.name), ..row };
        row.job["finetune"]["max_steps"] = json!(8);
        row
    };
    let checkpointing = json!({"gradient_checkpointing": true});
    vec![
        of(finetune(MEDIUM, Base::F32, "lora", (8, 1024), none())),
        of(finetune(DEEP, Base::Q8, "qlora", (16, 1024), none())),
        of(finetune(OTHER, Base::Bf16, "lora", (32, 512), checkpointing)),
        of(finetune(SMALL, Base::F32, "full", (4, 512), none())),
    ]
}
