//! Projections that lie in one tensor of the files (Phi-3): queries, keys and values as `qkv_proj`, gate and up as
//! `gate_up_proj`. The decoder has them one by one; here is where each of them lies.

use std::ops::Range;

use drydock_spec::FailureKind::BadOption;
use drydock_spec::finetune::TargetModule;

use super::config::Config;
use super::names::projection_name;
use crate::ending::{Result, failed};

/// Projections that the files hold in one.
const WHOLES: [(&str, &[TargetModule]); 2] = [
    ("qkv_proj", &[TargetModule::QProj, TargetModule::KProj, TargetModule::VProj]),
    ("gate_up_proj", &[TargetModule::GateProj, TargetModule::UpProj]),
];

/// Where a tensor lies in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The other's name.
    pub whole: String,
    /// Rows that the other has.
    pub of: usize,
    pub rows: Range<usize>,
}

/// The tensor of the files that holds the one that the decoder calls `name`, where that is another.
pub fn part(name: &str, config: &Config) -> Option<Part> {
    if !config.features.fused {
        return None;
    }
    let (layer, kind) = name.rsplit_once('.')?;
    let (layer, module) = layer.rsplit_once('.')?;
    let (whole, parts) = WHOLES.iter().find(|(_, parts)| parts.iter().any(|part| part.name() == module))?;
    let mut end = 0;
    let mut rows = 0..0;
    for part in *parts {
        let start = end;
        end += config.shape(*part)[0];
        if part.name() == module {
            rows = start..end;
        }
    }
    Some(Part { whole: format!("{layer}.{whole}.{kind}"), of: end, rows })
}

/// A projection as the files have it, and as an adapter is laid over it: one of the decoder's, or several in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Hugging Face's name, without `.weight`.
    pub name: String,
    /// One after the other, as their rows are.
    pub modules: Vec<TargetModule>,
}

impl Site {
    /// The last part of the name.
    fn module(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// The projections of a layer as the files have them.
pub fn sites(layer: usize, config: &Config) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for module in TargetModule::ALL {
        let name = projection_name(layer, module);
        let part = part(&format!("{name}.weight"), config);
        let name = part.and_then(|part| Some(part.whole.strip_suffix(".weight")?.to_owned())).unwrap_or(name);
        match sites.last_mut().filter(|site| site.name == name) {
            Some(site) => site.modules.push(module),
            None => sites.push(Site { name, modules: vec![module] }),
        }
    }
    sites
}

/// The names of these projections in the model's own words. An adapter lies over all that is in one, or over nothing
/// of it.
pub fn targets(modules: &[TargetModule], config: &Config) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for site in sites(0, config) {
        let (given, missing): (Vec<_>, Vec<_>) = site.modules.iter().partition(|module| modules.contains(module));
        if !given.is_empty() && !missing.is_empty() {
            let names = |modules: &[TargetModule]| modules.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
            let message = format!(
                "target_modules has {} without {}: in this model they are one projection, `{}`; target all of them or \
                 none",
                names(&given),
                names(&missing),
                site.module()
            );
            return failed(BadOption, message);
        }
        if missing.is_empty() {
            targets.push(site.module().to_owned());
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ending::Ending;

    fn config(architecture: &str) -> Config {
        Config::from_hf(&json!({"model_type": architecture, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
            "max_position_embeddings": 256}))
        .unwrap()
    }

    #[test]
    fn an_adapter_lies_over_what_the_files_hold_in_one() {
        use TargetModule::*;
        let names =
            |architecture| sites(1, &config(architecture)).into_iter().map(|site| site.name).collect::<Vec<_>>();
        assert_eq!(names("llama").len(), 7);
        assert_eq!(
            names("phi3"),
            [
                "model.layers.1.self_attn.qkv_proj",
                "model.layers.1.self_attn.o_proj",
                "model.layers.1.mlp.gate_up_proj",
                "model.layers.1.mlp.down_proj"
            ]
        );
        let targets = |modules: &[TargetModule]| targets(modules, &config("phi3"));
        assert_eq!(targets(&TargetModule::ALL).unwrap(), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]);
        let Err(Ending::Failed(failure)) = targets(&[QProj, VProj, OProj]) else { panic!("it is taken") };
        assert_eq!(
            failure.message,
            "target_modules has q_proj, v_proj without k_proj: in this model they are one projection, `qkv_proj`; \
             target all of them or none"
        );
    }

    #[test]
    fn parts_follow_one_another() {
        let found = |name: &str| part(name, &config("phi3")).map(|part| (part.whole, part.of, part.rows));
        let qkv = "model.layers.1.self_attn.qkv_proj.weight".to_owned();
        assert_eq!(found("model.layers.1.self_attn.q_proj.weight"), Some((qkv.clone(), 128, 0..64)));
        assert_eq!(found("model.layers.1.self_attn.v_proj.weight"), Some((qkv, 128, 96..128)));
        let gate_up = "model.layers.0.mlp.gate_up_proj.weight".to_owned();
        assert_eq!(found("model.layers.0.mlp.up_proj.weight"), Some((gate_up, 256, 128..256)));
        assert_eq!(found("model.layers.0.mlp.down_proj.weight"), None);
        assert_eq!(part("model.layers.1.self_attn.q_proj.weight", &config("llama")), None);
    }
}
