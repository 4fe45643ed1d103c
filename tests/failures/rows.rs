//! Rows that cannot be used. `load_dataset` reads every row, so most are damaged in the store; only a tokenizer can tell
//! that rows are too long.

use drydock_spec::FailureKind::{BadDataset, InputFailed, NotFound, NothingToLearn};
use drydock_spec::Stage;
use serde_json::{Value, json};

use crate::case::{Case, Deed, Guise};
use crate::damage::{Damage, Input};
use crate::order::{Meanwhile, Order, chat, chats, lines};

const AGAIN: &str = "outside: mend_dataset";

const fn case(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { name, kind: BadDataset, stage: Some(Stage::Tokenize), order, mend: None }.mended_by(Deed::BringsAgain, AGAIN)
}

const fn nothing(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { kind: NothingToLearn, ..case(name, order) }
}

pub(crate) const CASES: &[Case] = &[
    case("row that is cut off", |guise| {
        let cut = guise.pick([20, 33]);
        damaged(guise, move |mut bytes| {
            bytes.truncate(bytes.len() - cut);
            bytes
        })
    }),
    case("row without its column", |guise| {
        replaced(guise, "\"messages\"", guise.pick(["\"turns\"", "\"nachrichten\""]).into())
    }),
    case("rows of no bytes", |guise| damaged(guise, |_| Vec::new())),
    case("row that is no text", |guise| {
        let at = guise.pick([40, 200]);
        damaged(guise, move |mut bytes| {
            bytes[at] = 0xff;
            bytes
        })
    }),
    case("row that is no object", |guise| {
        let row = guise.pick(["[1, 2]\n", "[3, 4, 5]\n"]);
        damaged(guise, move |bytes| [row.as_bytes(), &bytes].concat())
    }),
    case("turn that nobody says", |guise| {
        replaced(guise, "\"assistant\"", guise.pick(["\"narrator\"", "\"bot\""]).into())
    }),
    case("turn without words", |guise| {
        let number = guise.pick([7, 12]);
        damaged(guise, move |bytes| {
            let mut row: Value = chat("x", "y");
            row["messages"][1]["content"] = json!(number);
            [lines([row]).into_bytes(), bytes].concat()
        })
    }),
    // A template that ends no turn leaves nothing of an empty answer.
    nothing("answers all empty", |guise| {
        let (count, template) = guise.pick([
            (3, "{% for m in messages %}{{ m.content }}{% endfor %}"),
            (7, "{% for row in messages %}{{ row.content }}{% endfor %}"),
        ]);
        let empty = damaged(guise, move |_| lines((0..count).map(|n| chat(&format!("Say {n}"), ""))).into_bytes());
        let template = Damage::json("tokenizer_config.json", move |config| config["chat_template"] = json!(template));
        empty.damaged(template)
    }),
    nothing("rows all too long", |guise| {
        Order::finetune(guise).with("max_seq_length", guise.pick([8, 12])).rows(chats(guise.pick([5, 6]), "What is"))
    })
    .mended("max_seq_length"),
    // The finetune fails of its rows, and what waits for its adapter with it.
    Case {
        name: "input job failed",
        kind: InputFailed,
        stage: Some(Stage::Prepare),
        order: |guise| damaged(guise, |_| Vec::new()).meanwhile(Meanwhile::Awaited),
        mend: None,
    }
    .mended_by(Deed::MendsInput, "adapter = \"job:"),
    Case {
        name: "rows gone",
        kind: NotFound,
        stage: Some(Stage::Prepare),
        order: |guise| Order::finetune(guise).damaged(Damage::whole(Input::Dataset)),
        mend: None,
    }
    .mended_by(Deed::BringsAgain, AGAIN),
];

fn damaged(guise: Guise, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> Order {
    Order::finetune(guise).damaged(Damage::rows(change))
}

/// With another word in the middle of the file.
fn replaced(guise: Guise, word: &'static str, by: String) -> Order {
    let nth = guise.pick([2, 4]);
    damaged(guise, move |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        let (at, _) = text.match_indices(word).nth(nth).unwrap();
        [&text[..at], &by, &text[at + word.len()..]].concat().into_bytes()
    })
}
