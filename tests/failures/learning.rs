//! Training that comes to nothing, and options that do not fit what they meet.

use drydock_spec::FailureKind::{BadOption, Diverged};
use drydock_spec::Stage;
use serde_json::json;

use crate::case::Case;
use crate::order::Order;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "learning rate too high",
        kind: Diverged,
        stage: Some(Stage::Train),
        order: |guise| {
            Order::finetune(guise)
                .with("learning_rate", guise.pick([1.0, 0.9]))
                .with("lora_alpha", 65_536)
                .with("max_grad_norm", 0.0)
                .with("warmup_steps", 0)
                .with("lr_scheduler_type", "constant")
                .with("num_train_epochs", 5000)
                .with("max_steps", guise.pick([200, 300]))
        },
        mend: None,
    }
    .mended("learning_rate * 0.1"),
    // The planner does not know the names of a model's tensors.
    Case {
        name: "pattern that fits nothing",
        kind: BadOption,
        stage: Some(Stage::Load),
        order: |guise| {
            let pattern = guise.pick(["model.layers.77.*", "*.attention.*"]);
            Order::finetune(guise).with("trainable", json!(["*.mlp.*", pattern]))
        },
        mend: None,
    }
    .mended("trainable = default"),
    Case {
        name: "rows too short for a block",
        kind: BadOption,
        stage: Some(Stage::Load),
        order: |guise| {
            let pattern = guise.pick(["blk.*.attn_q.weight", "blk.0.ffn_up.weight"]);
            Order::quantize(guise, json!({"quant_type": "Q8_0", "tensor_types": {pattern: "Q4_K"}}))
        },
        mend: None,
    }
    .mended("tensor_types = default"),
];
