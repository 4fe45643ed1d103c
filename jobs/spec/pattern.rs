//! Patterns over names of tensors, in which `*` stands for any characters, or none.

/// Whether the whole of a name fits a pattern.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        // The first place is the best one: it leaves the most for those that follow.
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let name = "model.layers.28.mlp.down_proj.weight";
        for pattern in ["*", name, "model.layers.28.*", "*.mlp.*", "*.down_proj.weight", "model*2*mlp*weight"] {
            assert!(fits(pattern, name), "{pattern}");
        }
        for pattern in ["", "mlp", "model.layers.2.*", "*.mlp", "*weight*down*", "*.attn.*", "model*weight*t"] {
            assert!(!fits(pattern, name), "{pattern}");
        }
        assert!(fits("*", "") && fits("", "") && !fits("a*a", "a"));
    }
}
