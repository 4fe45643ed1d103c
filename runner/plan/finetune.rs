//! Whether a finetune can work with its model and rows, and what it needs: pure rules.

use drydock_gpu::estimate::{Batch, Traffic, Training, Work, matches, of_each_gpu};
use drydock_spec::dataset::Format;
use drydock_spec::finetune::{FinetuneArgs, FinetuneSpec, Keep, Method, Objective};
use drydock_spec::option::Complaints;
use drydock_spec::recipe::{OnDivergence, Recipe};
use drydock_spec::{InvalidOption, InvalidOptions};

use super::lengths::Supply;
use super::needs::{self, Needs, Saving, Terms};
use super::rows::{self, Data};
use super::training::Room;
use crate::models::{Facts, Resolved};

/// Refuses options that do not go with this model and these rows; all complaints come at once.
pub(super) fn check(spec: &FinetuneSpec, model: &Resolved, data: &Data) -> Result<(), InvalidOptions> {
    let mut wrong = Complaints::default();
    rows::check_length(&mut wrong, spec.recipe.max_seq_length, model.facts.max_positions);
    if spec.method.has_adapter() {
        let largest = model.facts.decoder.largest_rank(&spec.target_modules);
        wrong.require(spec.lora_r <= largest, || {
            let problem = format!("the narrowest of the target modules has {largest} inputs or outputs");
            InvalidOption::new("lora_r", spec.lora_r, problem, format!("choose at most {largest}; 8 to 64 is usual"))
        });
    }
    rows::check_held_out(&mut wrong, spec.test_size, data);
    rows::check_form(&mut wrong, data, "dataset", rows::wanted_by_finetune(spec.objective));
    check_adapter(&mut wrong, spec, model);
    let trained = Training::finetune(&model.facts.decoder, spec, needs::base(model)).trained();
    wrong.require(trained > 0, || {
        let patterns = spec.trainable.clone().unwrap_or_default();
        let next = match patterns.iter().any(|pattern| matches(pattern, "model.layers.0.mlp.up_proj.weight")) {
            true => "name projections that are among target_modules as well",
            false => "write for example model.layers.0.* or *.mlp.*; the names are those of the safetensors file",
        };
        InvalidOption::new("trainable", format!("{patterns:?}"), "matches nothing that could be trained", next)
    });
    wrong.into_result(())
}

/// An adapter is gone on with in the way in which it was made.
fn check_adapter(wrong: &mut Complaints, spec: &FinetuneSpec, model: &Resolved) {
    let Some(adapter) = &model.adapter else { return };
    let name = model.input.adapter.as_ref().map(|adapter| adapter.name.as_str()).unwrap_or_default();
    wrong.require(spec.method.has_adapter(), || {
        let next = "merge it first (a finetune with keep \"merged\"), or choose method \"lora\"";
        InvalidOption::new("method", "full", format!("`{name}` is an adapter over its model"), next)
    });
    let is_dora = spec.method == Method::Dora;
    wrong.require(!spec.method.has_adapter() || is_dora == adapter.is_dora, || {
        let (made, next) = match adapter.is_dora {
            true => ("with DoRA", "choose method \"dora\""),
            false => ("without DoRA's magnitudes", "choose method \"lora\" or \"qlora\""),
        };
        let value = if is_dora { "dora" } else { "lora" };
        InvalidOption::new("method", value, format!("the adapter `{name}` was made {made}"), next)
    });
}

/// An adapter that is gone on with keeps its rank and its targets, whatever was asked for.
pub(super) fn keep_adapters_shape(spec: &mut FinetuneSpec, args: &FinetuneArgs, model: &Resolved) -> Vec<String> {
    let Some(adapter) = &model.adapter else { return Vec::new() };
    let mut warnings = Vec::new();
    let asked_otherwise = args.lora_r.is_some_and(|rank| rank != adapter.lora_r)
        || args.lora_alpha.is_some_and(|alpha| alpha != adapter.lora_alpha)
        || args.target_modules.as_ref().is_some_and(|modules| *modules != adapter.target_modules);
    if asked_otherwise {
        warnings.push(format!(
            "the adapter keeps its lora_r = {}, lora_alpha = {} and target_modules; what was asked for is passed over",
            adapter.lora_r, adapter.lora_alpha
        ));
    }
    (spec.lora_r, spec.lora_alpha) = (adapter.lora_r, adapter.lora_alpha);
    spec.target_modules.clone_from(&adapter.target_modules);
    warnings
}

/// What the job needs in memory, on the disk and from the hub.
pub(super) fn needs(spec: &FinetuneSpec, model: &Resolved, data: &Data, terms: Terms) -> Needs {
    let decoder = model.facts.decoder;
    let base = needs::base(model);
    let training = Training::finetune(&decoder, spec, base);
    let length = rows::length(&spec.recipe, model.facts.max_positions, data);
    let batch = Batch::new(spec.recipe.per_device_train_batch_size, length);
    let qlora = FinetuneSpec { method: Method::Qlora, ..spec.clone() };
    let room = Room {
        recipe: spec.recipe.clone(),
        // What holds less is offered only where it does: a quantized base is what the weights are in already.
        smaller: (spec.method == Method::Lora).then(|| Training::finetune(&decoder, &qlora, base)),
        training: training.clone(),
        decoder,
        weights_bytes: base.bytes(),
        rows: data.rows(),
        supply: Supply::of(spec, learnt(spec, data), data.lengths.clone()),
        learns_tokenizer: false,
        terms,
        length,
    };
    let (on_gpu, disk, batch) = (room.clone(), training.disk(), room.supply.fullest(batch));
    let work = work(spec, model, data, length, disk.total());
    let needs = Needs::new(
        [room.memory(&training, batch), disk],
        &work,
        terms,
        [training.disk_at_most(), model.download_bytes, training.trained()],
        move |budget, needed| room.refusal(budget, needed),
    )
    .or_less(saving(spec, model));
    match terms.gpus {
        0 => needs,
        gpus => {
            let memory = of_each_gpu(training.gpu_memory(batch), gpus);
            needs.on_gpu(&memory, terms.gpu, move |has, needed| on_gpu.refusal_on_gpu(has, needed))
        }
    }
}

/// Rows that are learnt from. KTO learns of a pair from each of its answers.
fn learnt(spec: &FinetuneSpec, data: &Data) -> u64 {
    let pairs = spec.objective == Objective::Kto && data.rows.manifest.format == Format::Preference;
    data.learnt(spec.test_size) * if pairs { 2 } else { 1 }
}

/// What it costs in time.
fn work(spec: &FinetuneSpec, model: &Resolved, data: &Data, length: u32, saved: u64) -> Work {
    let rows = data.rows();
    let tokens = data.tokens(length);
    let tokens = if spec.recipe.packing { tokens.packed(length) } else { tokens };
    let traffic = Traffic { weights: needs::base(model).bytes(), text: rows.text_bytes, saved };
    Work::finetune(&model.facts.decoder, spec, tokens, spec.test_size, traffic)
}

/// What is not asked for by everybody who gets it: a whole model beside the adapter, and checkpoints on the way.
fn saving(spec: &FinetuneSpec, model: &Resolved) -> Option<Saving> {
    let recipe = &spec.recipe;
    let (change, changed) = if spec.method.has_adapter() && spec.keep.merged() {
        ("set keep to \"adapter\"", FinetuneSpec { keep: Keep::Adapter, ..spec.clone() })
    } else if recipe.save_steps.is_some() && recipe.on_divergence != OnDivergence::RollBack {
        let recipe = Recipe { save_steps: None, ..recipe.clone() };
        ("leave out save_steps", FinetuneSpec { recipe, ..spec.clone() })
    } else {
        return None;
    };
    let disk_bytes = Training::finetune(&model.facts.decoder, &changed, needs::base(model)).disk_at_most();
    Some(Saving { change: change.to_owned(), disk_bytes })
}

/// What somebody should know who submits this.
pub(super) fn warnings(facts: &Facts, data: &Data) -> Vec<String> {
    let mut warnings = data.warnings();
    warnings.extend(data.without_template(facts));
    warnings.extend(data.with_tokens_beyond(facts));
    warnings
}

#[cfg(test)]
mod tests;
