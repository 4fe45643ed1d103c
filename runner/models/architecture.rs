//! Which decoders the worker has the arithmetic of.

use drydock_gpu::Decoder;
use drydock_spec::model::{ARCHITECTURES, Architecture};

use super::Unusable;

/// The architecture of this name, or its refusal.
pub(super) fn named(name: &str) -> Result<Architecture, Unusable> {
    let shown: String = name.chars().take(80).collect();
    Architecture::named(name).ok_or_else(|| {
        Unusable::unsupported(
            format!("the architecture is `{shown}`; known are {}", ARCHITECTURES.join(", ")),
            "choose a model of a known architecture",
        )
    })
}

/// Refuses numbers that no model has: what comes after may divide and multiply by them.
pub(super) fn check_decoder(decoder: &Decoder) -> Result<(), Unusable> {
    let ranges = [
        ("layers", decoder.layers, 1 << 10),
        ("hidden size", decoder.hidden, 1 << 20),
        ("attention heads", decoder.heads, 1 << 12),
        ("key-value heads", decoder.kv_heads, 1 << 12),
        ("head size", decoder.head_dim, 1 << 14),
        ("feed-forward size", decoder.ffn, 1 << 22),
        ("vocabulary", decoder.vocabulary, 1 << 24),
    ];
    let next = "take the configuration from the model's own repository";
    if let Some((name, value, most)) = ranges.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
        let problem = format!("the configuration says {name} = {value}; 1 to {most} is possible");
        return Err(Unusable::damaged(problem, next));
    }
    if !decoder.heads.is_multiple_of(decoder.kv_heads) || !decoder.head_dim.is_multiple_of(2) {
        let problem = format!(
            "{} attention heads of size {} do not go with {} key-value heads",
            decoder.heads, decoder.head_dim, decoder.kv_heads
        );
        return Err(Unusable::damaged(problem, next));
    }
    Ok(())
}
