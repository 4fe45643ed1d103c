//! Names of tensors and projections, as Hugging Face writes them, and which of them patterns choose.

use drydock_spec::FailureKind::BadOption;
use drydock_spec::finetune::TargetModule;
use drydock_spec::pattern;

use crate::ending::{Result, failed};

/// Hugging Face's name of a projection, without `.weight`.
pub fn projection_name(layer: usize, module: TargetModule) -> String {
    let part = match module {
        TargetModule::QProj | TargetModule::KProj | TargetModule::VProj | TargetModule::OProj => "self_attn",
        TargetModule::GateProj | TargetModule::UpProj | TargetModule::DownProj => "mlp",
    };
    format!("model.layers.{layer}.{part}.{}", module.name())
}

/// The names that fit any of the patterns, in their own order; all of them where there is no pattern. A pattern that
/// fits nothing is a mistake.
pub fn chosen(patterns: &[String], names: Vec<String>) -> Result<Vec<String>> {
    // A projection may be called by the name of its weight, too.
    let fits =
        |pattern: &str, name: &str| pattern::fits(pattern, name) || pattern::fits(pattern, &format!("{name}.weight"));
    if let Some(pattern) = patterns.iter().find(|pattern| !names.iter().any(|name| fits(pattern, name))) {
        let (count, step) = (names.len(), (names.len() / 6).max(1));
        let some: Vec<&str> = names.iter().step_by(step).map(String::as_str).collect();
        let message = format!(
            "the pattern `{pattern}` fits none of the {count} names that there are to train, such as {}",
            some.join(", ")
        );
        return failed(BadOption, message);
    }
    let wanted = |name: &String| patterns.is_empty() || patterns.iter().any(|pattern| fits(pattern, name));
    Ok(names.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::Ending;

    #[test]
    fn a_pattern_that_fits_nothing_is_told_with_names_that_exist() {
        let names = || [3, 4].map(|layer| projection_name(layer, TargetModule::UpProj)).to_vec();
        assert_eq!(chosen(&[], names()).unwrap(), names());
        let fourth = chosen(&["model.layers.4.*".into()], names()).unwrap();
        assert_eq!(fourth, ["model.layers.4.mlp.up_proj"]);
        assert_eq!(chosen(&["*.up_proj.weight".into()], names()).unwrap().len(), 2);
        let Err(Ending::Failed(failure)) = chosen(&["*.mlp.*".into(), "*.attn.*".into()], names()) else { panic!() };
        assert_eq!(failure.kind, BadOption);
        assert_eq!(
            failure.message,
            "the pattern `*.attn.*` fits none of the 2 names that there are to train, such as \
             model.layers.3.mlp.up_proj, model.layers.4.mlp.up_proj"
        );
    }
}
