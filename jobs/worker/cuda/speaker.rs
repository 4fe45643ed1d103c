//! A model that speaks on a GPU: scores, and answers token by token, as [`crate::model::speaker`] has it.

use super::batch::OnDevice;
use super::conversation::{Recalled, Remembered};
use super::device::Device;
use super::engine::on_device;
use super::model::{Computed, Group, Model};
use super::tape::Tape;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::kernels::cross_entropy::Target;
use crate::model::conversation::{Conversation, News, Piece};
use crate::model::decoder::Decoder;
use crate::model::speaker::Speaker;
use crate::model::tape::Pass;

/// A model on a device, with its adapter's values where it has one.
pub struct Loaded<'a, T: Computed> {
    device: &'a Device,
    decoder: &'a Decoder,
    model: Model<T>,
    groups: Vec<Group>,
}

impl<'a, T: Computed> Loaded<'a, T> {
    pub fn new(device: &'a Device, decoder: &'a Decoder) -> Result<Self> {
        let group = |index: usize| match decoder.groups().get(index) {
            Some(trainable) => on_device::<T>(device, trainable),
            None => Group::new::<T>(device, &[]),
        };
        let groups: Vec<Group> = (0..=decoder.last_group()).map(group).collect::<Result<_>>()?;
        let mut model = Model::load(device, decoder)?;
        model.settle(device, decoder, &groups)?;
        Ok(Self { device, decoder, model, groups })
    }

    /// Who speaks with it.
    pub fn voice(&self) -> Voice<'_, T> {
        Voice { device: self.device, decoder: self.decoder, model: &self.model, groups: &self.groups }
    }
}

/// Who speaks with the values of the moment.
#[derive(Clone, Copy)]
pub struct Voice<'a, T: Computed> {
    pub(super) device: &'a Device,
    pub(super) decoder: &'a Decoder,
    pub(super) model: &'a Model<T>,
    pub(super) groups: &'a [Group],
}

impl<T: Computed> Voice<'_, T> {
    /// The pieces through all layers, with the targets, whose positions count over all pieces.
    fn heard(&self, pieces: &mut [Piece<'_, Remembered<T>>], targets: &[Target]) -> Result<(Tape<'_, T>, News)> {
        let Self { device, decoder, model, groups } = *self;
        let news = News::of(pieces, &decoder.rope);
        let recalled = Recalled::new(device, pieces, &news)?;
        let places: Vec<usize> = news.pieces().flatten().collect();
        let targets: Vec<Target> =
            targets.iter().map(|target| Target { position: places[target.position], ..*target }).collect();
        let batch = OnDevice::of_news(device, decoder, &news, &targets, recalled)?;
        let tape =
            Tape::through(device, decoder, (model, groups), (news.ids.clone(), batch, 0), Pass::default(), false)?;
        Ok((tape, news))
    }
}

impl<T: Computed> Speaker for Voice<'_, T> {
    type Memory = Remembered<T>;

    const TOKENS_AT_ONCE: usize = drydock_spec::device::SCORED_TOKENS as usize;

    fn target_losses(&self, batch: &Batch) -> Result<Vec<f64>> {
        let Self { device, decoder, model, groups } = *self;
        Tape::record(device, decoder, (model, groups), (batch, 0), Pass::default(), false)?.losses()
    }

    fn conversation(&self, tokens: usize) -> Result<Conversation<Remembered<T>>> {
        Ok(Conversation::new(Remembered::new(self.device, self.model, tokens)?))
    }

    fn take_in(&self, pieces: &mut [Piece<'_, Remembered<T>>]) -> Result<()> {
        self.heard(pieces, &[])?;
        Ok(())
    }

    fn piece_losses(&self, pieces: &mut [Piece<'_, Remembered<T>>], targets: &[Target]) -> Result<Vec<f64>> {
        self.heard(pieces, targets)?.0.losses()
    }

    fn next_tokens(&self, pieces: &mut [Piece<'_, Remembered<T>>]) -> Result<Vec<Option<u32>>> {
        let (tape, news) = self.heard(pieces, &[])?;
        tape.next_tokens(&news.pieces().map(|piece| piece.end - 1).collect::<Vec<_>>())
    }
}
