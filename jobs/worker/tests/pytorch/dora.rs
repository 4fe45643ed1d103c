//! DoRA as PEFT does it; `tests/reference/make_llama_dora.py`.

use drydock_worker::model::lora::SavedAdapter;

use crate::reference::{Case, relative_error};

/// A model with the adapter that PEFT has saved for it.
fn case(name: &str) -> Case {
    let mut case = Case::open("llama_dora", name, "dora.safetensors");
    let adapter = SavedAdapter::open(&case.folder.join("adapter")).unwrap();
    assert!(adapter.shape.dora);
    case.trainables = adapter.load(&mut case.decoder).unwrap();
    case
}

const CASES: [&str; 2] = ["all_projections", "some_projections"];

#[test]
fn an_adapter_that_peft_has_saved_gives_pefts_logits() {
    for case in CASES.map(case) {
        let logits = case.decoder.logits(&case.rows[0].ids).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let want = case.tensors["logits"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let error = relative_error(&logits, &want);
        assert!(error < 1e-5, "{}: {error:e}", case.name);
    }
}

#[test]
fn matrices_and_lengths_get_the_gradients_that_peft_computes() {
    for case in CASES.map(case) {
        case.assert_first_gradients(3);
    }
}

#[test]
fn steps_give_pefts_losses() {
    for case in CASES.map(case) {
        case.assert_steps();
    }
}
