//! Tokenizers and chat templates that are damaged or belong to another model, put into the store after the plan.

use drydock_spec::FailureKind::{BadDataset, BadModel};
use drydock_spec::Stage;
use serde_json::json;

use crate::case::{Case, Deed, Guise};
use crate::damage::Damage;
use crate::order::Order;

const TOKENIZER: &str = "tokenizer.json";
const BESIDE: &str = "tokenizer_config.json";

const fn case(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { name, kind: BadModel, stage: Some(Stage::Load), order, mend: None }
        .mended_by(Deed::BringsAgain, "outside: mend_model")
}

pub(crate) const CASES: &[Case] = &[
    case("tokenizer gone", |guise| Order::finetune(guise).damaged(Damage::lost(TOKENIZER))),
    case("tokenizer cut off", |guise| {
        let part = guise.pick([2, 3]);
        Order::finetune(guise).damaged(Damage::model(TOKENIZER, move |bytes| bytes[..bytes.len() / part].to_vec()))
    }),
    Case {
        stage: Some(Stage::Tokenize),
        ..case("tokens beyond the vocabulary", |guise| {
            let beyond = guise.pick([300, 4000]);
            Order::finetune(guise).damaged(Damage::json(TOKENIZER, move |tokenizer| {
                tokenizer["added_tokens"][1]["id"] = json!(beyond);
                tokenizer["model"]["vocab"]["<|im_end|>"] = json!(beyond);
            }))
        })
    },
    case("stop token that nobody knows", |guise| {
        let token = guise.pick(["<|eot_id|>", "</s>"]);
        Order::finetune(guise).damaged(Damage::json(BESIDE, move |config| config["eos_token"] = json!(token)))
    }),
    Case {
        stage: Some(Stage::Tokenize),
        ..case("template that is none", |guise| {
            let open =
                guise.pick(["{% for m in messages %}{{ m.content }}", "{% for row in messages %}<{{ row.role }}>"]);
            template(guise, open.to_owned())
        })
    },
    Case {
        kind: BadDataset,
        stage: Some(Stage::Tokenize),
        ..case("template that refuses a row", |guise| {
            let turns = guise.pick([3, 40]);
            template(guise, format!("{{{{ raise_exception('At least {turns} turns are expected') }}}}"))
        })
    },
    Case {
        kind: BadDataset,
        stage: Some(Stage::Tokenize),
        ..case("template without the answer", |guise| {
            let (begin, end) = guise.pick([("", ""), ("<", ">")]);
            template(guise, format!("{begin}{{{{ messages[0].content }}}}{end}"))
        })
    },
];

/// With another chat template.
fn template(guise: Guise, template: String) -> Order {
    Order::finetune(guise).damaged(Damage::json(BESIDE, move |config| config["chat_template"] = json!(template)))
}
