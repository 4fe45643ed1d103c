//! The models of an evaluation, and in which states each is measured.

use std::path::Path;

use drydock_spec::contract::ModelInput;
use drydock_spec::evaluate::EvaluateSpec;
use drydock_spec::{AttemptSpec, Failure, FailureKind};

use super::results::Outcome;
use crate::ending::{Result, input};

/// A model to be measured, and in which states.
pub(super) struct Subject<'a> {
    /// As the caller named it.
    name: String,
    pub(super) input: &'a ModelInput,
    /// The adapter's name, where there is an adapter.
    adapter: Option<String>,
    /// Whether it is also measured without its adapter.
    bare: bool,
}

/// The first model, and those that are measured beside it.
pub(super) fn subjects<'a>(attempt: &'a AttemptSpec, spec: &EvaluateSpec) -> Result<Vec<Subject<'a>>> {
    let adapter_name = |named: &Option<String>, input: &ModelInput| {
        input.adapter.is_some().then(|| named.clone().unwrap_or_else(|| "adapter".into()))
    };
    let first = input(&attempt.inputs.model, "model")?;
    let adapter = adapter_name(&spec.adapter, first);
    let mut subjects = vec![Subject { name: spec.model.clone(), input: first, adapter, bare: true }];
    if attempt.inputs.compared.len() != spec.compare_with.len() {
        let (given, asked) = (attempt.inputs.compared.len(), spec.compare_with.len());
        let message = format!("the spec has {given} `inputs.compared` for {asked} `compare_with`");
        return Err(Failure::new(FailureKind::ContractBroken, message).into());
    }
    for (other, input) in spec.compare_with.iter().zip(&attempt.inputs.compared) {
        let adapter = adapter_name(&other.adapter, input);
        subjects.push(Subject { name: other.model.clone(), input, adapter, bare: false });
    }
    Ok(subjects)
}

impl Subject<'_> {
    /// The adapters that it is measured with, one after the other; none at first where it is measured bare.
    pub(super) fn states(&self) -> Vec<Option<&Path>> {
        let adapter = self.input.adapter.as_deref();
        if self.bare && adapter.is_some() { vec![None, adapter] } else { vec![adapter] }
    }

    /// What it is called in reports and results; two of one name are numbered.
    pub(super) fn named(&self, with_adapter: bool, outcomes: &[Outcome]) -> String {
        let name = match &self.adapter {
            Some(adapter) if with_adapter => format!("{} + {adapter}", self.name),
            _ => self.name.clone(),
        };
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let free = names.find(|name| outcomes.iter().all(|outcome| outcome.model != *name));
        free.unwrap_or(name)
    }
}
