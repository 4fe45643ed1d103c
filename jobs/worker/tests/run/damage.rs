//! Files that are damaged, or that do not belong together: named, and never passed over.

use std::fs;

use drydock_spec::contract::EXIT_FINISHED;
use drydock_spec::{Failure, FailureKind, Report, Stage};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::scene::CHATML;
use crate::scene::{Scene, rows};
use crate::tiny::tokenizer;

fn with_tokenizer(change: impl Fn(&mut Value), config: Value) -> Failure {
    let scene = Scene::new(json!({}));
    let mut json = tokenizer();
    change(&mut json);
    fs::write(scene.path("model/tokenizer.json"), json.to_string()).unwrap();
    fs::write(scene.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    let failure = scene.failure();
    assert_eq!(failure.kind, FailureKind::BadModel, "{failure:?}");
    failure
}

fn usual() -> Value {
    json!({"eos_token": "<|im_end|>", "chat_template": CHATML})
}

#[test]
fn a_tokenizer_that_its_own_library_cannot_bear_is_an_unusable_model_and_no_crash() {
    // The library cuts this prefix off the second part of each merge without a look at how long that is.
    let failure = with_tokenizer(
        |json| {
            json["model"]["continuing_subword_prefix"] = json!("####");
            json["model"]["merges"] = json!([["a", "b"]]);
        },
        usual(),
    );
    assert!(failure.message.starts_with("tokenizer.json: it cannot be worked on ("), "{failure:?}");
    assert_eq!(failure.stage, Some(Stage::Load));
}

#[test]
fn a_tokenizer_that_does_not_belong_to_the_model_is_told() {
    let config = |name: &str, token: &str| {
        let mut config = usual();
        config[name] = token.into();
        config
    };
    for name in ["bos_token", "eos_token"] {
        let failure = with_tokenizer(|_| {}, config(name, "<|stranger|>"));
        let told = format!("tokenizer_config.json has the {name} `<|stranger|>`, which tokenizer.json lacks");
        assert_eq!(failure.message, told);
        assert_eq!(failure.hint, "take the tokenizer files that belong to the model");
    }
    // The model has 512 rows.
    let beyond = |json: &mut Value| {
        json["added_tokens"][2]["id"] = 512.into();
        json["model"]["vocab"]["<|im_end|>"] = 512.into();
    };
    let failure = with_tokenizer(beyond, usual());
    let told = "the tokenizer makes token 512, `<|im_end|>`, of a text; the model's vocabulary has 512";
    assert_eq!(failure.message, told);
}

#[test]
fn rows_in_which_nothing_counts_are_noticed_before_anything_is_trained() {
    let say = |answer: &str| {
        json!({"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]}).to_string()
    };
    let scene = Scene::new(json!({}));
    let config =
        json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}", "eos_token": "<|im_end|>"});
    fs::write(scene.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    scene.write_dataset(&[say(""), say("")].join("\n"));
    let failure = scene.failure();
    assert_eq!((failure.kind, failure.stage), (FailureKind::NothingToLearn, Some(Stage::Tokenize)));
    assert_eq!(failure.message, "all 2 rows have an empty answer");

    let silent = Scene::new(json!({}));
    let config = json!({"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"});
    fs::write(silent.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    let failure = silent.failure();
    assert_eq!(failure.kind, FailureKind::BadDataset);
    assert!(failure.message.contains("the chat template does not show the assistant's turn 2 (`zero`)"), "{failure:?}");

    let mut held_out = Scene::new(json!({"eval_dataset": "other", "max_seq_length": 32}));
    fs::create_dir(held_out.path("eval")).unwrap();
    fs::write(held_out.path("eval/rows.jsonl"), rows(3).replace("Say", &"Say ".repeat(20))).unwrap();
    held_out.spec["inputs"]["eval_dataset"] = json!(held_out.path("eval"));
    let failure = held_out.failure();
    assert_eq!(failure.kind, FailureKind::NothingToLearn);
    assert!(failure.message.starts_with("eval_dataset: all 3 rows are longer than max_seq_length = 32"), "{failure:?}");
}

/// The two files of a checkpoint.
type Files<'a> = (&'a mut Vec<u8>, &'a mut Value);

/// Other values, and the digest that belongs to them: what a disk does not do, but people may.
fn forge((tensors, state): Files<'_>, change: impl Fn(&mut Vec<u8>)) {
    change(tensors);
    let digest: String = Sha256::digest(&tensors).iter().map(|byte| format!("{byte:02x}")).collect();
    state["tensors"] = digest.into();
}

#[test]
fn a_damaged_checkpoint_is_never_trained_on_and_never_passed_over() {
    let options = json!({"max_steps": 4, "save_steps": 2});
    let first = Scene::new(options.clone());
    assert_eq!(first.run("run").0, EXIT_FINISHED);
    let refused = |damage: &dyn Fn(Files<'_>)| {
        let next = first.next_attempt(options.clone());
        let (from, to) = (first.path("out/checkpoints/step-4"), next.path("checkpoint"));
        fs::create_dir(&to).unwrap();
        let mut tensors = fs::read(from.join("checkpoint.safetensors")).unwrap();
        let mut state: Value = serde_json::from_slice(&fs::read(from.join("checkpoint.json")).unwrap()).unwrap();
        damage((&mut tensors, &mut state));
        if !tensors.is_empty() {
            fs::write(to.join("checkpoint.safetensors"), &tensors).unwrap();
        }
        fs::write(to.join("checkpoint.json"), state.to_string()).unwrap();
        let mut next = next;
        next.spec["inputs"]["checkpoint"] = json!(to);
        let failure = next.failure();
        assert_eq!(failure.kind, FailureKind::ContractBroken, "{failure:?}");
        assert!(!next.reports().iter().any(|report| matches!(report, Report::Metrics(_))), "nothing is trained");
        failure.message
    };
    let not_as_written = "the checkpoint's checkpoint.safetensors is not as it was written: its SHA-256 was ";
    assert!(refused(&|(tensors, _)| tensors.truncate(tensors.len() / 2)).starts_with(not_as_written));
    assert!(refused(&|(tensors, _)| *tensors.last_mut().unwrap() ^= 1).starts_with(not_as_written));
    let missing = refused(&|(tensors, _)| tensors.clear());
    assert!(missing.starts_with("the checkpoint's checkpoint.safetensors: "), "{missing}");
    let cut = refused(&|files| forge(files, |tensors| tensors.truncate(tensors.len() / 2)));
    assert!(cut.starts_with("the checkpoint's checkpoint.safetensors: "), "{cut}");
    let no_number = refused(&|files| {
        forge(files, |tensors| {
            let end = tensors.len();
            tensors[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    });
    assert!(no_number.ends_with("holds NaN, with which nothing is learnt"), "{no_number}");
    let renamed = refused(&|files| {
        forge(files, |tensors| {
            let at = tensors.windows(8).position(|window| window == b"values.b").unwrap();
            tensors[at] = b'V';
        });
    });
    assert!(renamed.starts_with("tensor `values.base_model.model."), "{renamed}");
    let reshaped = refused(&|files| {
        forge(files, |tensors| {
            let at = tensors.windows(6).position(|window| window == b"[8,64]").unwrap();
            tensors[at..at + 6].copy_from_slice(b"[64,8]");
        });
    });
    assert!(reshaped.ends_with("is [64, 8]; [8, 64] is trained"), "{reshaped}");
    let older = refused(&|(_, state)| state["format"] = 1.into());
    assert_eq!(older, "the checkpoint is of format 1; this worker knows 2");
    let other = refused(&|(_, state)| state["state"]["steps"] = json!(-1));
    assert!(other.starts_with("the checkpoint's checkpoint.json: invalid value"), "{other}");
}
