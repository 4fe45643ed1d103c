//! Whole models trained as PyTorch trains them; `tests/reference/make_llama_full.py`.

use drydock_worker::data::batch::Batch;
use drydock_worker::kernels::weight::Precision;
use drydock_worker::model::names::chosen;
use drydock_worker::model::parameter::Gradients;
use drydock_worker::model::tape::{Pass, Tape};

use crate::reference::{Case, relative_error};

const CASES: [&str; 2] = ["tied", "untied"];

/// A model of which the tensors are trained whose names fit the patterns.
fn case_of(name: &str, patterns: &[&str]) -> Case {
    let mut case = Case::open("llama_full", name, "full.safetensors");
    let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
    let names = case.decoder.tensors().map(|parameter| parameter.name.clone()).collect();
    case.trainables = case.decoder.train(&chosen(&patterns, names).unwrap()).unwrap();
    case
}

fn case(name: &str) -> Case {
    case_of(name, &[])
}

/// Losses and gradients of the first batch; each loss counts by another number.
fn pass(case: &Case, pass: Pass) -> (Vec<f64>, Gradients) {
    let batch = Batch::of(&case.rows);
    let scales: Vec<f32> = (0..batch.targets.len()).map(|target| 0.01 * (target as f32 + 1.0)).collect();
    let mut gradients = Gradients::of(&case.trainables);
    let losses = Tape::record(&case.decoder, &batch, pass).unwrap().backward(&scales, &mut gradients).unwrap();
    (losses, gradients)
}

#[test]
fn every_tensor_gets_the_gradient_that_pytorch_computes() {
    for case in CASES.map(case) {
        case.assert_first_gradients(3);
    }
}

#[test]
fn packed_rows_do_not_see_each_other() {
    for case in CASES.map(case) {
        // The reference has them one by one.
        case.assert_first_gradients(case.rows.len());
    }
}

#[test]
fn steps_give_pytorchs_losses() {
    for case in CASES.map(case) {
        case.assert_steps();
    }
}

#[test]
fn tensors_that_are_not_named_stay_as_they_are() {
    for patterns in [&["model.layers.1.*"][..], &["*norm.weight"], &["model.embed_tokens.weight"], &["*.0.mlp.up*"]] {
        for name in CASES {
            let (whole, some) = (case(name), case_of(name, patterns));
            let [(_, whole_gradients), (_, gradients)] = [&whole, &some].map(|case| pass(case, Pass::default()));
            let mut seen = 0;
            for (group, trainable) in some.trainables.iter().enumerate() {
                for tensor in &trainable.tensors {
                    let same = whole.trainables[group].tensors.iter().find(|same| same.name == tensor.name).unwrap();
                    let want = &whole_gradients.groups()[group][same.range.clone()];
                    assert_eq!(&gradients.groups()[group][tensor.range.clone()], want, "{}", tensor.name);
                    seen += 1;
                }
            }
            assert!(seen > 0 && seen < whole.trainables.iter().map(|group| group.tensors.len()).sum::<usize>());
        }
    }
}

#[test]
fn layers_that_are_computed_again_give_the_same_gradients_bit_for_bit() {
    for case in CASES.map(case) {
        let bits = |gradient_checkpointing| {
            let (losses, gradients) = pass(&case, Pass { gradient_checkpointing, ..Pass::default() });
            let gradients: Vec<u32> = gradients.groups().concat().into_iter().map(f32::to_bits).collect();
            (losses.into_iter().map(f64::to_bits).collect::<Vec<_>>(), gradients)
        };
        assert_eq!(bits(false), bits(true));
    }
}

#[test]
fn rounded_products_come_close() {
    for case in CASES.map(case) {
        let [(_, exact), (_, rounded)] = [Precision::F32, Precision::Bf16]
            .map(|precision| pass(&case, Pass { precision, ..Pass::default() }))
            .map(|(losses, gradients)| (losses, gradients.groups().concat()));
        let error = relative_error(&rounded, &exact);
        assert!(error > 1e-5 && error < 0.03, "{}: {error:e}", case.name);
    }
}

#[test]
fn losses_alone_are_those_of_the_backward_pass() {
    let case = case("tied");
    let batch = Batch::of(&case.rows);
    let alone = Tape::record(&case.decoder, &batch, Pass::default()).unwrap().losses().unwrap();
    assert_eq!(alone, pass(&case, Pass::default()).0);
    assert_eq!(alone.iter().sum::<f64>(), case.decoder.score(&batch).unwrap());
}
