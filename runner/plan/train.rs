//! Whether a training from nothing can work with its rows, and what it needs: pure rules.

use drydock_gpu::estimate::{Batch, Tokens, Traffic, Training, Work, of_each_gpu};
use drydock_spec::InvalidOptions;
use drydock_spec::option::Complaints;
use drydock_spec::train::TrainSpec;

use super::lengths::Supply;
use super::needs::{Needs, Terms};
use super::rows::{self, Data};
use super::training::Room;
use crate::models::{Resolved, decoder_of};

/// Refuses options that do not go with these rows; all complaints come at once.
pub(super) fn check(data: &Data) -> Result<(), InvalidOptions> {
    let mut wrong = Complaints::default();
    rows::check_form(&mut wrong, data, "dataset", rows::wanted_by_training());
    wrong.into_result(())
}

/// What the job needs in memory, on the disk and from the hub. With another model's tokenizer goes its vocabulary.
pub(super) fn needs(spec: &TrainSpec, tokenizer: Option<&Resolved>, data: &Data, terms: Terms) -> Needs {
    let decoder = decoder_of(spec, tokenizer.map_or(spec.vocab_size, |tokenizer| tokenizer.facts.decoder.vocabulary));
    let training = Training::from_nothing(&decoder, &spec.recipe);
    let length = rows::length(&spec.recipe, spec.config.max_position_embeddings, data);
    let room = Room {
        recipe: spec.recipe.clone(),
        training: training.clone(),
        smaller: None,
        weights_bytes: 4 * decoder.parameters(),
        decoder,
        rows: data.rows(),
        supply: Supply::default(),
        learns_tokenizer: tokenizer.is_none(),
        terms,
        length,
    };
    let rows = data.rows();
    let tokens = Tokens::of(1, rows.text_bytes, u32::MAX).packed(length);
    let traffic = Traffic { weights: 0, text: rows.text_bytes, saved: training.disk().total() };
    let batch = Batch::new(spec.recipe.per_device_train_batch_size, length);
    let on_gpu = room.clone();
    let needs = Needs::new(
        [room.memory(&training, batch), training.disk()],
        &Work::from_nothing(&decoder, &spec.recipe, tokens, spec.test_size, traffic),
        terms,
        [training.disk_at_most(), tokenizer.map_or(0, |tokenizer| tokenizer.download_bytes), training.trained()],
        move |budget, needed| room.refusal(budget, needed),
    );
    match terms.gpus {
        0 => needs,
        gpus => {
            let memory = of_each_gpu(training.gpu_memory(batch), gpus);
            needs.on_gpu(&memory, terms.gpu, move |has, needed| on_gpu.refusal_on_gpu(has, needed))
        }
    }
}
