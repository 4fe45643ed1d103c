//! What a training pass keeps: one formula, by which the worker's tape is tested and the gateway's estimates count.

/// The widths of what goes through a layer of a decoder, in numbers of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerWidths {
    /// Of the stream that runs through the layers.
    pub hidden: u64,
    /// Of all query heads together.
    pub queries: u64,
    /// Of all key heads together, and of all value heads.
    pub keys: u64,
    /// Inside the MLP.
    pub ffn: u64,
    /// Whether what attention and MLP give goes through a norm before it joins the stream.
    pub norms_after: bool,
}

impl LayerWidths {
    /// Numbers that a layer's forward pass keeps of a token for its backward pass; norms and gates are computed again,
    /// and so is what an adapter makes of its input.
    ///
    /// ```text
    /// 2 * hidden    the stream before attention, and between attention and MLP
    /// 2 * queries   queries, and what attention gives
    /// 2 * keys      keys and values
    /// 2 * ffn       gate and up
    /// 2 * hidden    what attention and MLP give, where norms follow them
    /// ```
    #[must_use]
    pub fn kept(&self) -> u64 {
        let Self { hidden, queries, keys, ffn, norms_after } = *self;
        let streams = if norms_after { 2 * hidden } else { hidden };
        2 * (streams + queries + keys + ffn)
    }

    /// Numbers that the tape of a training pass has of a token when all layers are through: what each of them keeps, or
    /// with gradient checkpointing only what enters it; and what comes out of the last one.
    #[must_use]
    pub fn taped(&self, layers: u64, gradient_checkpointing: bool) -> u64 {
        let layer = if gradient_checkpointing { self.hidden } else { self.kept() };
        layers.saturating_mul(layer).saturating_add(self.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smollm2_keeps_5760_numbers_a_token_and_layer() {
        let widths = LayerWidths { hidden: 576, queries: 576, keys: 192, ffn: 1536, norms_after: false };
        assert_eq!((widths.kept(), widths.taped(30, false)), (5760, 30 * 5760 + 576));
        assert_eq!(widths.taped(30, true), 31 * 576);
        assert_eq!(LayerWidths { norms_after: true, ..widths }.kept(), 5760 + 2 * 576);
    }
}
