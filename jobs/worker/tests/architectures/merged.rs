//! A model that is written is the model that was read.

use std::collections::BTreeMap;

use candle_core::Tensor;
use drydock_worker::model::decoder::Decoder;

use crate::{CASES, Case};

/// Every tensor that would be written: shape and values.
fn written(decoder: &Decoder) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let merged = decoder.merged();
    merged.iter().map(|tensor| (tensor.name.clone(), (tensor.shape.clone(), tensor.values().unwrap()))).collect()
}

#[test]
fn a_model_is_written_as_its_files_have_it() {
    for case in CASES.map(Case::of) {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let weights = case.weights();
        let files: BTreeMap<_, _> =
            weights.iter().map(|(name, tensor)| (name.clone(), (tensor.dims().to_vec(), values(tensor)))).collect();
        let mut decoder = case.decoder();
        assert!(written(&decoder) == files, "{}: while it is frozen", case.name);
        let names: Vec<String> = decoder.tensors().map(|parameter| parameter.name.clone()).collect();
        decoder.train(&names).unwrap();
        assert!(written(&decoder) == files, "{}: once it is trained", case.name);
    }
}
