//! The names of a decoder's tensors, as Hugging Face writes them, and the patterns that choose among them.

use drydock_spec::finetune::TargetModule;
use drydock_spec::pattern::fits;

use super::Decoder;

/// Whether `pattern`, in which `*` stands for anything, names this tensor. `.weight` may be left out.
#[must_use]
pub fn matches(pattern: &str, tensor: &str) -> bool {
    let named = |tensor: &str| {
        fits(pattern, tensor) || tensor.strip_suffix(".weight").is_some_and(|module| fits(pattern, module))
    };
    named(tensor) || fused(tensor).is_some_and(|fused| named(&fused))
}

/// What a projection is part of in an architecture that holds several as one, such as Phi-3.
fn fused(tensor: &str) -> Option<String> {
    [
        ("q_proj", "qkv_proj"),
        ("k_proj", "qkv_proj"),
        ("v_proj", "qkv_proj"),
        ("gate_proj", "gate_up_proj"),
        ("up_proj", "gate_up_proj"),
    ]
    .into_iter()
    .find(|(part, _)| tensor.split('.').any(|word| word == *part))
    .map(|(part, whole)| tensor.replace(&format!(".{part}"), &format!(".{whole}")))
}

/// Every tensor of the decoder with its numbers; the projections say which they are.
pub(super) fn tensors(model: &Decoder) -> impl Iterator<Item = (String, Option<TargetModule>, u64)> {
    let (decoder, hidden) = (*model, u64::from(model.hidden));
    let layers = (0..model.layers).flat_map(move |layer| {
        let projections = TargetModule::ALL.map(|module| {
            let part = match module {
                TargetModule::QProj | TargetModule::KProj | TargetModule::VProj | TargetModule::OProj => "self_attn",
                TargetModule::GateProj | TargetModule::UpProj | TargetModule::DownProj => "mlp",
            };
            let name = format!("model.layers.{layer}.{part}.{}.weight", module.name());
            (name, Some(module), decoder.projection_size(module))
        });
        let norms = ["input_layernorm", "post_attention_layernorm"]
            .map(|norm| (format!("model.layers.{layer}.{norm}.weight"), None, hidden));
        // Biases and further norms, whose names differ between architectures and whose size hardly counts.
        let others = (format!("model.layers.{layer}.others"), None, u64::from(decoder.layer_vectors));
        projections.into_iter().chain(norms).chain([others])
    });
    let head = (!model.tied).then(|| ("lm_head.weight".to_owned(), None, model.embedding()));
    [("model.embed_tokens.weight".to_owned(), None, model.embedding()), ("model.norm.weight".to_owned(), None, hidden)]
        .into_iter()
        .chain(layers)
        .chain(head)
}

#[cfg(test)]
mod tests {
    use super::super::SMOLLM2_135M;
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_nothing_else_does() {
        let name = "model.layers.28.mlp.up_proj.weight";
        for pattern in
            ["*", "model.layers.28.*", "*.mlp.*", "*.up_proj", "*.gate_up_proj", name, "model.*.mlp.*.weight"]
        {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["", "model.layers.2.*", "*.down_proj", "mlp", "model.layers.28", "*.mlp.*.mlp.*"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    #[test]
    fn the_tensors_are_all_there_are() {
        let all: u64 = tensors(&SMOLLM2_135M).map(|(_, _, numbers)| numbers).sum();
        assert_eq!(all, SMOLLM2_135M.parameters());
        let untied = Decoder { tied: false, layer_vectors: 960, ..SMOLLM2_135M };
        assert_eq!(tensors(&untied).map(|(_, _, numbers)| numbers).sum::<u64>(), untied.parameters());
    }
}
