//! Conversations on the device, as [`crate::kernels::attention::Cache`] and [`crate::model::conversation`] have them:
//! what layers remember of each, and attention of tokens that look back at it.
//!
//! Tokens of which nothing was said before attend to each other in products, like the rows of a batch; those that go on
//! look back one by one, with all of the conversations in one launch: an answer's next token is a matter of reading.
//!
//! # What it costs
//! For the Llama of 8B of [`super::engine`] in bf16, 16 conversations of 1024 tokens and one more token of each: 16 GB of
//! weights and 2.1 GB of keys and values are read, 5.4 ms at an H100's 3.35 TB/s; 10 launches a layer, some 2 ms of the
//! host's time, are asked for meanwhile. On paper that is 2900 tokens a second. With weights in blocks of four bits it is
//! less, as widening writes and reads them again: 4.5 GB, and twice 14 GB. A prompt of 1024 tokens is 16 TFLOP, 23 ms at
//! 70 % of the peak.

use super::attention::{Attention, Parts};
use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, Element};
use super::model::{Computed, Model};
use super::module::{Shape, arguments};
use super::operations::{named, small};
use super::rows::{Rows, RowsMut};
use crate::model::conversation::{Memory, News, Piece};

/// Threads of a query, and keys that it looks at at once.
const THREADS: u32 = 128;

/// What all layers remember of one conversation: `[layers, 2, room, key_value_width]`, keys and values.
pub struct Remembered<T: Element> {
    values: Buffer<T>,
    /// Tokens that there is room for.
    room: usize,
}

/// What lies behind the last token is written over by what follows.
impl<T: Element> Memory for Remembered<T> {
    fn truncate(&mut self, _: usize) {}
}

impl<T: Computed> Remembered<T> {
    pub(super) fn new(device: &Device, model: &Model<T>, room: usize) -> Result<Self> {
        let len = model.layers.len() * 2 * room * model.config.heads.key_value_width();
        Ok(Self { values: device.buffer(len)?, room })
    }
}

/// Where the tokens of a pass are remembered.
pub(super) struct Recalled {
    /// Where each conversation's memory begins, and how many tokens it has room for.
    starts: Buffer<u64>,
    rooms: Buffer<u32>,
    /// The conversation of each token, and its place in there.
    rows: Buffer<u32>,
    places: Buffer<u32>,
    /// Tokens of conversations that go on.
    going_on: Buffer<u32>,
}

impl Recalled {
    /// # Panics
    /// If a conversation gets longer than it was begun for: a mistake of the caller.
    pub(super) fn new<T: Element>(device: &Device, pieces: &[Piece<'_, Remembered<T>>], news: &News) -> Result<Self> {
        let (mut rows, mut places, mut going_on) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (at, &before)) in news.bounds.windows(2).zip(&news.before).enumerate() {
            let end = before + at[1] - at[0];
            let room = pieces[row].conversation.memory.room;
            assert!(end <= room, "a conversation of {end} tokens in a memory for {room}");
            rows.extend((before..end).map(|_| small(row)));
            places.extend((before..end).map(small));
            going_on.extend((at[0]..at[1]).filter(|_| before > 0).map(small));
        }
        let memories = || pieces.iter().map(|piece| &piece.conversation.memory);
        Ok(Self {
            starts: device.upload(&memories().map(|memory| memory.values.address()).collect::<Vec<_>>())?,
            rooms: device.upload(&memories().map(|memory| small(memory.room)).collect::<Vec<_>>())?,
            rows: device.upload(&rows)?,
            places: device.upload(&places)?,
            going_on: device.upload(&going_on)?,
        })
    }
}

impl Attention<'_> {
    /// Puts the keys and values of all tokens where they are remembered.
    pub(super) fn remember<T: Computed>(&self, recalled: &Recalled, k: Rows<'_, T>, v: Rows<'_, T>) -> Result<()> {
        self.device.launch(
            named!(T, "remember"),
            Shape::of(k.rows, 256),
            arguments![
                k.at,
                k.stride as u64,
                v.at,
                v.stride as u64,
                &self.angles.cosines,
                &self.angles.sines,
                self.batch.angles(self.turns_as_window),
                &recalled.starts,
                &recalled.rooms,
                &recalled.rows,
                &recalled.places,
                small(self.layer),
                small(k.width),
                small(self.heads.dim),
                small(self.angles.half)
            ],
        )
    }

    /// Writes what the tokens that go on see of what is remembered to their rows of `y`, `[tokens, query_width]`.
    pub(super) fn look_back<T: Computed>(
        &self,
        recalled: &Recalled,
        of: Parts<'_, T>,
        y: RowsMut<'_, T>,
    ) -> Result<()> {
        let dim = self.heads.dim;
        let shared = (2 * dim + THREADS as usize) * size_of::<f32>();
        self.device.launch(
            named!(T, "look_back"),
            Shape::of(recalled.going_on.len() * self.heads.query, THREADS).with_shared(shared),
            arguments![
                of.q.at,
                of.q.stride as u64,
                &self.angles.cosines,
                &self.angles.sines,
                self.batch.angles(self.turns_as_window),
                self.scoring.scale,
                &recalled.starts,
                &recalled.rooms,
                &recalled.rows,
                &recalled.places,
                &recalled.going_on,
                small(self.layer),
                y.at,
                y.stride as u64,
                small(self.heads.query),
                small(self.group()),
                small(dim),
                small(self.angles.half),
                self.scoring.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
                self.scoring.softcap.unwrap_or(0.0)
            ],
        )
    }
}
