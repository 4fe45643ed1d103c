//! One layer of the decoder on the device, forward and backward: the steps of [`crate::model::layer`], which says what is
//! kept and why.

use super::adapted::Adapted;
use super::attention::{Attention, Parts};
use super::device::Device;
use super::dora::Stretched;
use super::error::Result;
use super::memory::Buffer;
use super::model::{Computed, Group, Layer, Norm};
use super::operations::{add, add_bias, bias_gradient, gate, gate_backward};
use super::product::Mix;
use super::rows::{Rows, RowsMut};
use super::stack::{Opened, Projection, Stack};
use crate::model::layer::Adapter;

/// A layer with its trained values.
#[derive(Clone, Copy)]
pub(super) struct Complete<'a, T: Computed> {
    pub device: &'a Device,
    pub layer: &'a Layer<T>,
    pub group: &'a Group,
    /// Width of the stream.
    pub hidden: usize,
    pub attention: Attention<'a>,
    /// The seed of a training pass's dropout.
    pub dropout_seed: Option<u64>,
    /// Where in its pass the stream begins, in tokens.
    pub first_token: usize,
}

/// What a forward pass leaves to the backward pass; [`drydock_spec::tape`] counts it.
pub(super) struct Kept<T: Computed> {
    /// `[tokens, queries + 2 * keys]`
    query_key_value: Buffer<T>,
    attended: Buffer<T>,
    /// What the norm after attention is about, where there is one.
    attention_out: Option<Buffer<T>>,
    /// The stream between attention and MLP.
    middle: Buffer<T>,
    /// `[tokens, 2 * width]`
    gate_up: Buffer<T>,
    /// What the norm after the MLP is about, where there is one.
    mlp_out: Option<Buffer<T>>,
}

impl<T: Computed> Complete<'_, T> {
    /// `[tokens, hidden]` to `[tokens, hidden]`.
    pub(super) fn forward(&self, x: &Buffer<T>) -> Result<(Buffer<T>, Kept<T>)> {
        let Self { device, layer, hidden, .. } = *self;
        let h = self.normed(&layer.input_norm, x)?;
        let query_key_value = self.project(&layer.query_key_value, &h)?;
        drop(h);
        let attended = self.attend(&query_key_value)?;
        let attention_out = self.project(&layer.output, &attended)?;
        let (middle, h, attention_out) = match &layer.attention_after_norm {
            None => {
                let (middle, h) = layer.mlp_norm.weighted(self.group).join(device, x, &attention_out)?;
                drop(attention_out);
                (middle, h, None)
            }
            Some(norm) => {
                let normed = self.normed(norm, &attention_out)?;
                let (middle, h) = layer.mlp_norm.weighted(self.group).join(device, x, &normed)?;
                (middle, h, Some(attention_out))
            }
        };
        let gate_up = self.project(&layer.gate_up, &h)?;
        drop(h);
        let inner = gate(device, layer.activation, &gate_up, layer.gate_up.out / 2)?;
        let out = self.project(&layer.down, &inner)?;
        drop(inner);
        let (mut y, mlp_out) = match &layer.mlp_after_norm {
            None => (out, None),
            Some(norm) => (norm.weighted(self.group).forward(device, Rows::of(&out, hidden))?, Some(out)),
        };
        add(device, &middle, &mut y)?;
        Ok((y, Kept { query_key_value, attended, attention_out, middle, gate_up, mlp_out }))
    }

    /// From the gradient `dy` of the output to that of the input `x`; nothing comes back where nothing is trained
    /// further down. The trained values' gradients are added to `gradients`.
    pub(super) fn backward(
        &self,
        x: &Buffer<T>,
        kept: Kept<T>,
        dy: Buffer<T>,
        further: bool,
        gradients: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>> {
        let Self { device, layer, group, hidden, .. } = *self;
        let Kept { query_key_value, attended, attention_out, middle, mut gate_up, mlp_out } = kept;

        let parted = self.parted(layer.mlp_after_norm.as_ref(), mlp_out, &dy, gradients)?;
        let inner = gate(device, layer.activation, &gate_up, layer.gate_up.out / 2)?;
        let dinner = self.back(&layer.down, &inner, parted.as_ref().unwrap_or(&dy), gradients)?;
        drop((parted, inner));
        gate_backward(device, layer.activation, &dinner, &mut gate_up, layer.gate_up.out / 2)?;
        drop(dinner);
        let dgate_up = gate_up;
        let h = self.normed(&layer.mlp_norm, &middle)?;
        let dh = self.back(&layer.gate_up, &h, &dgate_up, gradients)?;
        drop((h, dgate_up));
        let mut dmiddle = dy;
        self.norm_back(&layer.mlp_norm, &middle, &dh, &mut dmiddle, gradients)?;
        drop((dh, middle));

        let parted = self.parted(layer.attention_after_norm.as_ref(), attention_out, &dmiddle, gradients)?;
        let dattended = self.back(&layer.output, &attended, parted.as_ref().unwrap_or(&dmiddle), gradients)?;
        drop((parted, attended));
        let dquery_key_value = self.attend_back(&query_key_value, &dattended, gradients)?;
        drop((dattended, query_key_value));
        let h = self.normed(&layer.input_norm, x)?;
        let asked = further || layer.input_norm.weight.place().is_some();
        let dh = self.back_if(asked, &layer.query_key_value, &h, &dquery_key_value, gradients)?;
        drop((h, dquery_key_value));
        let Some(dh) = dh else { return Ok(None) };
        let weight = layer.input_norm.weight.gradient(gradients);
        let dx = (RowsMut::of(&mut dmiddle, hidden), true);
        layer.input_norm.weighted(group).backward(device, Rows::of(x, hidden), &dh, dx, weight)?;
        Ok(further.then_some(dmiddle))
    }

    fn normed(&self, norm: &Norm, x: &Buffer<T>) -> Result<Buffer<T>> {
        norm.weighted(self.group).forward(self.device, Rows::of(x, self.hidden))
    }

    /// Adds to `dx`, which holds the gradient of the stream around the norm.
    fn norm_back(
        &self,
        norm: &Norm,
        x: &Buffer<T>,
        dy: &Buffer<T>,
        dx: &mut Buffer<T>,
        gradients: &mut Buffer<f32>,
    ) -> Result<()> {
        let dx = (RowsMut::of(dx, self.hidden), true);
        let weight = norm.weight.gradient(gradients);
        norm.weighted(self.group).backward(self.device, Rows::of(x, self.hidden), dy, dx, weight)
    }

    /// From the gradient of the stream to that of what attention or the MLP gave, where a norm stands between them.
    fn parted(
        &self,
        norm: Option<&Norm>,
        out: Option<Buffer<T>>,
        dy: &Buffer<T>,
        gradients: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>> {
        let (Some(norm), Some(out)) = (norm, out) else { return Ok(None) };
        let mut dout = self.device.buffer(out.len())?;
        let dx = (RowsMut::of(&mut dout, self.hidden), false);
        let weight = norm.weight.gradient(gradients);
        norm.weighted(self.group).backward(self.device, Rows::of(&out, self.hidden), dy, dx, weight)?;
        Ok(Some(dout))
    }

    /// Queries, keys and values as the projections leave them.
    fn parts<'k>(&self, query_key_value: &'k Buffer<T>) -> Parts<'k, T> {
        let all = Rows::of(query_key_value, self.layer.query_key_value.out);
        let [q, k, v] = self.columns();
        Parts { q: all.columns(q), k: all.columns(k), v: all.columns(v) }
    }

    fn columns(&self) -> [std::ops::Range<usize>; 3] {
        let heads = self.attention.heads;
        let (queries, keys) = (heads.query_width(), heads.key_value_width());
        [0..queries, queries..queries + keys, queries + keys..queries + 2 * keys]
    }

    /// Queries and keys after their own norms, where those are.
    fn head_normed(&self, parts: Parts<'_, T>) -> Result<Option<[Buffer<T>; 2]>> {
        let Some([of_q, of_k]) = &self.layer.query_key_norms else { return Ok(None) };
        let q = of_q.weighted(self.group).forward(self.device, parts.q)?;
        Ok(Some([q, of_k.weighted(self.group).forward(self.device, parts.k)?]))
    }

    fn attend(&self, query_key_value: &Buffer<T>) -> Result<Buffer<T>> {
        let parts = self.parts(query_key_value);
        match self.head_normed(parts)? {
            None => self.attention.forward(parts),
            Some([q, k]) => self.attention.forward(self.with(&q, &k, parts)),
        }
    }

    fn with<'k>(&self, q: &'k Buffer<T>, k: &'k Buffer<T>, parts: Parts<'k, T>) -> Parts<'k, T> {
        let heads = self.attention.heads;
        Parts { q: Rows::of(q, heads.query_width()), k: Rows::of(k, heads.key_value_width()), v: parts.v }
    }

    /// The gradient of what the projections have left.
    fn attend_back(
        &self,
        query_key_value: &Buffer<T>,
        dattended: &Buffer<T>,
        gradients: &mut Buffer<f32>,
    ) -> Result<Buffer<T>> {
        let (device, parts) = (self.device, self.parts(query_key_value));
        let [of_q, of_k, of_v] = self.columns();
        let mut dparts = device.buffer(query_key_value.len())?;
        let mut all = RowsMut::of(&mut dparts, self.layer.query_key_value.out);
        let (Some([q, k]), Some([q_norm, k_norm])) = (self.head_normed(parts)?, &self.layer.query_key_norms) else {
            let found = self.attention.backward(parts, dattended)?;
            self.attention.put_dq(&found, all.columns(of_q))?;
            self.attention.put_dk(&found, all.columns(of_k))?;
            self.attention.put_dv(&found, all.columns(of_v))?;
            return Ok(dparts);
        };
        let found = self.attention.backward(self.with(&q, &k, parts), dattended)?;
        let (mut dasking, mut danswering) = (device.buffer(q.len())?, device.buffer(k.len())?);
        self.attention.put_dq(&found, RowsMut::of(&mut dasking, of_q.len()))?;
        self.attention.put_dk(&found, RowsMut::of(&mut danswering, of_k.len()))?;
        self.attention.put_dv(&found, all.columns(of_v))?;
        drop((found, q, k));
        let weight = q_norm.weight.gradient(gradients);
        q_norm.weighted(self.group).backward(device, parts.q, &dasking, (all.columns(of_q), false), weight)?;
        let weight = k_norm.weight.gradient(gradients);
        k_norm.weighted(self.group).backward(device, parts.k, &danswering, (all.columns(of_k), false), weight)?;
        Ok(dparts)
    }

    /// `[tokens, out]` of `[tokens, width]`: all projections of a stack side by side.
    fn project(&self, stack: &Stack<T>, x: &Buffer<T>) -> Result<Buffer<T>> {
        let device = self.device;
        let x_rows = Rows::of(x, stack.width);
        let mut y = device.buffer(x_rows.rows * stack.out)?;
        let mut y_rows = RowsMut::of(&mut y, stack.out);
        let opened = stack.open(device)?;
        for (weight, columns) in opened.weights(self.group) {
            device.multiply(x_rows.matrix(), weight.matrix().t(), Mix::SET, y_rows.columns(columns).matrix())?;
        }
        let opened = stack.stretches().then_some(opened);
        for part in &stack.parts {
            let y = y_rows.columns(part.columns.clone());
            match (opened.as_ref().and_then(|opened| self.stretched(opened, part)), &part.adapter) {
                (Some(stretched), _) => stretched.add(x, y)?,
                (None, Some(adapter)) => self.adapted(adapter, stack.width).add(x, y)?,
                (None, None) => {}
            }
            if let Some(bias) = &part.bias {
                add_bias(device, y_rows.columns(part.columns.clone()), bias.values(self.group))?;
            }
        }
        Ok(y)
    }

    fn back(&self, stack: &Stack<T>, x: &Buffer<T>, dy: &Buffer<T>, gradients: &mut Buffer<f32>) -> Result<Buffer<T>> {
        let dx = self.back_if(true, stack, x, dy, gradients)?;
        Ok(dx.expect("a gradient that is asked for comes back"))
    }

    /// The gradient of a stack's input, where it is asked for; those of weights, biases and adapters are added to
    /// `gradients`.
    fn back_if(
        &self,
        asked: bool,
        stack: &Stack<T>,
        x: &Buffer<T>,
        dy: &Buffer<T>,
        gradients: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>> {
        if stack.stretches() {
            return self.back_stretched(asked, stack, x, dy, gradients);
        }
        let dy = Rows::of(dy, stack.out);
        let mut dx = if asked { Some(self.device.buffer(x.len())?) } else { None };
        if let Some(dx) = &mut dx {
            self.back_through(&stack.open(self.device)?, stack.width, dy, dx)?;
        }
        for part in &stack.parts {
            self.part_back(part, stack.width, x, dy.columns(part.columns.clone()), dx.as_mut(), gradients)?;
        }
        Ok(dx)
    }

    /// The same of a stack whose rows have trained lengths. Without dropout, weight and adapter meet the same gradient,
    /// that before the gains; with it, the weight's own share of the result meets no gains.
    fn back_stretched(
        &self,
        asked: bool,
        stack: &Stack<T>,
        x: &Buffer<T>,
        dy: &Buffer<T>,
        gradients: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<T>>> {
        let (device, opened) = (self.device, stack.open(self.device)?);
        let mut before = device.buffer(dy.len())?;
        before.copy_from(dy.view())?;
        let mut gains = Vec::with_capacity(stack.parts.len());
        for part in &stack.parts {
            let stretched = self.stretched(&opened, part);
            let found = stretched.map(Stretched::gains).transpose()?;
            if let Some(found) = &found {
                found.scale(device, RowsMut::of(&mut before, stack.out).columns(part.columns.clone()))?;
            }
            gains.push(found);
        }
        let drops = |part: &Projection<T>| self.stretched(&opened, part).is_some_and(|part| part.adapted.drops());
        let (dy, before) = (Rows::of(dy, stack.out), Rows::of(&before, stack.out));
        let mut dx = if asked { Some(device.buffer(x.len())?) } else { None };
        if let Some(dx) = &mut dx {
            let meets = if stack.parts.iter().any(drops) { dy } else { before };
            self.back_through(&opened, stack.width, meets, dx)?;
        }
        for (part, gains) in stack.parts.iter().zip(&gains) {
            let columns = || part.columns.clone();
            if let (Some(stretched), Some(gains)) = (self.stretched(&opened, part), gains) {
                stretched.backward(gains, x, dy.columns(columns()), dx.as_mut(), gradients)?;
            }
            self.part_back(part, stack.width, x, before.columns(columns()), dx.as_mut(), gradients)?;
        }
        Ok(dx)
    }

    /// The gradient of what went into a stack's weights, from that of what came out.
    fn back_through(&self, opened: &Opened<'_, T>, width: usize, dy: Rows<'_, T>, dx: &mut Buffer<T>) -> Result<()> {
        for (index, (weight, columns)) in opened.weights(self.group).into_iter().enumerate() {
            let mix = if index == 0 { Mix::SET } else { Mix::ADD };
            let dx = RowsMut::of(dx, width).matrix();
            self.device.multiply(dy.columns(columns).matrix(), weight.matrix(), mix, dx)?;
        }
        Ok(())
    }

    fn stretched<'p>(&'p self, opened: &'p Opened<'_, T>, part: &'p Projection<T>) -> Option<Stretched<'p, T>> {
        opened.stretched(part, (self.device, self.group), (self.dropout_seed, self.first_token))
    }

    /// What is a projection's own in the backward pass of its stack.
    fn part_back(
        &self,
        part: &Projection<T>,
        width: usize,
        x: &Buffer<T>,
        dy: Rows<'_, T>,
        dx: Option<&mut Buffer<T>>,
        gradients: &mut Buffer<f32>,
    ) -> Result<()> {
        let device = self.device;
        if let Some(dbias) = part.bias.as_ref().and_then(|bias| bias.gradient(gradients)) {
            bias_gradient(device, dy, dbias)?;
        }
        if let Some(dweight) = part.weight_gradient(gradients) {
            device.multiply(dy.matrix().t(), Rows::of(x, width).matrix(), Mix::ADD, dweight.matrix())?;
        }
        match &part.adapter {
            Some(adapter) => self.adapted(adapter, width).backward(x, dy, dx, gradients),
            None => Ok(()),
        }
    }

    fn adapted<'p>(&'p self, adapter: &'p Adapter, width: usize) -> Adapted<'p> {
        let Self { device, group, dropout_seed, first_token, .. } = *self;
        Adapted { device, adapter, group, width, dropout_seed, first_token }
    }
}
