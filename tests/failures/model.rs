//! Models whose files are damaged, or do not fit together. All of them were whole when the job was planned: the planner
//! reads every header and would have refused them.

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::Stage;
use serde_json::{Value, json};

use crate::case::{Case, Deed, Guise};
use crate::damage::Damage;
use crate::order::Order;
use crate::tiny::{Gguf, numbers, string, strings};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// That the tokenizer has.
const TOKENS: u64 = 260;

const fn case(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { name, kind: BadModel, stage: Some(Stage::Load), order, mend: None }
        .mended_by(Deed::BringsAgain, "outside: mend_model")
}

const fn unsupported(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { kind: UnsupportedModel, ..case(name, order) }.mended_by(Deed::BringsAgain, "outside: choose_model")
}

pub(crate) const CASES: &[Case] = &[
    case("weights cut off", |guise| {
        let part = guise.pick([2, 3]);
        weights(guise, move |bytes| bytes[..bytes.len() / part].to_vec())
    }),
    case("weights overwritten", |guise| {
        let sign = guise.pick([b'#', b'~']);
        weights(guise, move |mut bytes| {
            bytes[8..200].fill(sign);
            bytes
        })
    }),
    case("pointer instead of weights", |guise| {
        weights(guise, |bytes| {
            let (digest, size) = (format!("{:064x}", bytes.len()), bytes.len());
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n").into_bytes()
        })
    }),
    case("weights gone", |guise| Order::finetune(guise).damaged(Damage::lost(WEIGHTS))),
    case("weights of zero bytes", |guise| weights(guise, |_| Vec::new())),
    case("tensor missing", |guise| {
        let tensor = guise.pick(["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]);
        header(guise, move |header| drop(header.as_object_mut().unwrap().remove(tensor)))
    }),
    case("tensor of another shape", |guise| {
        Order::finetune(guise).damaged(Damage::json(CONFIG, |config| {
            let width = config["intermediate_size"].as_u64().unwrap();
            config["intermediate_size"] = json!(width + 32);
        }))
    }),
    case("tensor of an unknown type", |guise| {
        let tensor = guise.pick(["model.norm.weight", "model.layers.1.mlp.down_proj.weight"]);
        header(guise, move |header| header[tensor]["dtype"] = json!("F8_E4M3"))
    }),
    case("configuration cut off", |guise| {
        let part = guise.pick([2, 3]);
        Order::finetune(guise).damaged(Damage::model(CONFIG, move |bytes| bytes[..bytes.len() / part].to_vec()))
    }),
    case("configuration without a size", |guise| {
        let key = guise.pick(["hidden_size", "num_attention_heads"]);
        Order::finetune(guise)
            .damaged(Damage::json(CONFIG, move |config| drop(config.as_object_mut().unwrap().remove(key))))
    }),
    case("GGUF cut off", |guise| {
        let quarters = guise.pick([2, 3]);
        gguf(guise, move |bytes| bytes[..bytes.len() * quarters / 4].to_vec())
    }),
    case("GGUF that is none", |guise| {
        let magic = guise.pick([*b"ggjt", *b"GGML"]);
        gguf(guise, move |bytes| [&magic, &bytes[4..]].concat())
    }),
    unsupported("unknown architecture", |guise| {
        let (kind, class) = guise.pick([("mamba", "MambaForCausalLM"), ("rwkv", "RwkvForCausalLM")]);
        Order::finetune(guise).damaged(Damage::json(CONFIG, move |config| {
            config["model_type"] = json!(kind);
            config["architectures"] = json!([class]);
        }))
    }),
    unsupported("unknown activation", |guise| {
        let name = guise.pick(["relu6", "swish_squared"]);
        Order::finetune(guise).damaged(Damage::json(CONFIG, move |config| config["hidden_act"] = json!(name)))
    }),
    Case {
        stage: Some(Stage::Evaluate),
        ..case("weights that are no numbers", |guise| {
            weights(guise, |mut bytes| {
                let end = bytes.len();
                bytes[end - 4096..].fill(0xff);
                bytes
            })
        })
    },
];

/// A model in one file, which is damaged, with its tokenizer beside it.
fn gguf(guise: Guise, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> Order {
    let mut order = Order::finetune(guise).damaged(Damage::model("model.gguf", change));
    let mut file = Gguf::tiny()
        .with("general.name", string(&format!("small {}", guise.seed)))
        .with("tokenizer.ggml.tokens", strings(TOKENS))
        .with("tokenizer.ggml.token_type", numbers(TOKENS));
    file.tensors[0].shape[1] = TOKENS;
    order.model.retain(|name, _| name.starts_with("tokenizer"));
    order.model.insert("small.gguf".to_owned(), file.bytes());
    order.with("lora_r", 4).with("max_seq_length", 128)
}

fn weights(guise: Guise, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> Order {
    Order::finetune(guise).damaged(Damage::model(WEIGHTS, change))
}

/// The weights with another header over the same data.
fn header(guise: Guise, change: impl Fn(&mut Value) + Send + 'static) -> Order {
    weights(guise, move |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat()
    })
}
