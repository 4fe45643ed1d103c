//! Whether a quantization can work, and what it needs: pure rules.

use drydock_gpu::estimate::{self, Part, Traffic, Work, file_bytes, quantize_memory};
use drydock_spec::option::Complaints;
use drydock_spec::quantize::{QuantizeSpec, TensorType};
use drydock_spec::{InvalidOption, InvalidOptions};

use super::needs::{self, Needs, Terms};
use super::rows::{self, Data};
use crate::blobs::size;
use crate::models::{Facts, Resolved};

/// Multiplications and additions that searching the scales of a value takes, about.
const ENCODING_FLOP: f64 = 100.0;

/// Refuses options that do not go with this model and these rows; all complaints come at once.
pub(super) fn check(spec: &QuantizeSpec, data: Option<&Data>) -> Result<(), InvalidOptions> {
    let mut wrong = Complaints::default();
    if let Some(data) = data {
        rows::check_form(&mut wrong, data, "imatrix_dataset", rows::wanted_by_imatrix());
    }
    wrong.require(spec.columns.is_none() || spec.imatrix_dataset.is_some(), || {
        let next = "leave it out, or give the imatrix_dataset whose columns these are";
        InvalidOption::new("columns", "{...}", "given without imatrix_dataset", next)
    });
    wrong.into_result(())
}

/// What the job needs in memory, on the disk and from the hub.
pub(super) fn needs(spec: &QuantizeSpec, model: &Resolved, data: Option<&Data>, terms: Terms) -> Needs {
    let decoder = model.facts.decoder;
    let (base, threads) = (needs::base(model), terms.threads());
    let plain = QuantizeSpec { imatrix_dataset: None, ..spec.clone() };
    let without = quantize_memory(&decoder, base, &plain, threads).total();
    let memory = quantize_memory(&decoder, base, spec, threads);
    let disk = estimate::Needs::default().with(Part::Artifacts, file_bytes(&decoder, spec.quant_type));
    let traffic =
        Traffic { weights: base.bytes(), text: data.map_or(0, |data| data.rows().text_bytes), saved: disk.total() };
    let (name, measures) = (spec.model.clone(), data.is_some());
    Needs::new(
        [data.map_or(memory.clone(), |data| data.rows().then(memory, &decoder, threads)), disk],
        &Work::new(traffic, 0.0, ENCODING_FLOP * decoder.parameters() as f64),
        terms,
        [file_bytes(&decoder, spec.quant_type), model.download_bytes, 0],
        move |budget, needed| {
            let problem = format!("the job needs about {}, jobs may use {} on this host", size(needed), size(budget));
            let fits = terms.margin.limit(without) <= budget;
            match measures && fits {
                true => InvalidOption::new("imatrix_dataset", "...", problem, "leave it out, or give a smaller one"),
                false => {
                    InvalidOption::new("model", &name, problem, "choose a smaller model, or raise capacity.memory")
                }
            }
        },
    )
    .reading(4 * decoder.parameters())
}

/// What somebody should know who submits this.
pub(super) fn warnings(spec: &QuantizeSpec, facts: &Facts, data: Option<&Data>) -> Vec<String> {
    let mut warnings = data.map(Data::warnings).unwrap_or_default();
    if let Some(stored) = needs::stored_as(facts) {
        let bits = |kind: TensorType| 8.0 * kind.block().1 as f64 / kind.block().0 as f64;
        if bits(spec.quant_type.main_type()) > bits(stored) {
            warnings.push(format!(
                "the model is quantized already ({}); {} makes it larger and no better",
                facts.dtype,
                spec.quant_type.name()
            ));
        } else {
            warnings.push(format!(
                "the model is quantized already ({}); quantizing it again loses more than quantizing the original",
                facts.dtype
            ));
        }
    }
    warnings
}
