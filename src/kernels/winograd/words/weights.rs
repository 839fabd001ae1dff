//! The weights of a 3x3 convolution at rest; they are transformed in `filters`, panel by panel.

use std::ops::Range;

use rayon::prelude::*;

use super::super::super::aligned::AlignedBuf;
use super::super::super::blocking::Panels;
use super::super::super::interleave::Interleave;
use super::super::super::nibbles::{self, GROUP, Grouped, Nibbles};
use super::super::super::read_only::{LentBytes, ReadOnly};
use super::super::super::word_product::{round_to_word, scale_of};
use super::super::transforms::COMPONENTS;
use super::blocks::Blocking;
use super::exact;
use super::inputs::Limits;

/// Weights at rest, and how great their components become.
#[derive(Clone)]
pub struct Weights {
    pub values: Values,
    /// See [`super::filters::greatest`]; none of bytes.
    pub greatest: ReadOnly<u16>,
}

/// `[panel][depth][3 * 3][panel width]`, zeros beyond the last column.
#[derive(Clone)]
pub enum Values {
    F32(ReadOnly<f32>),
    /// With one scale per output, like all that follow.
    I8(ReadOnly<i8>, ReadOnly<f32>),
    Words(ReadOnly<i16>, ReadOnly<f32>),
    /// The same in lines of one input, which become words.
    Nibbles(Nibbles, ReadOnly<f32>),
}

impl Weights {
    /// See [`super::WinogradWords::parts`].
    pub fn parts(&self) -> Vec<&[u8]> {
        let mut parts = self.values.parts();
        if !matches!(self.values, Values::I8(..)) {
            parts.push(self.greatest.bytes());
        }
        parts
    }

    /// What inputs that meet these weights become.
    pub fn limits(&self, blocking: Blocking) -> Limits {
        let (greatest, factors) = match self.values {
            Values::I8(..) => exact::limits(blocking),
            Values::F32(_) | Values::Words(..) | Values::Nibbles(..) => {
                ([blocking.limit; COMPONENTS], [1.0; COMPONENTS])
            }
        };
        Limits::new(greatest, factors)
    }

    /// See [`super::WinogradWords::of_parts`].
    pub fn of_parts(parts: Vec<LentBytes>, panels: &Panels, blocking: Blocking) -> Option<Self> {
        let len = panels.count() * blocking.depth * 9 * panels.width;
        let greatest =
            |part| ReadOnly::lent(part, panels.count() * blocking.count * COMPONENTS * panels.width);
        let mut parts = parts.into_iter();
        Some(match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
            (weights, last, None, None) => match ReadOnly::lent(weights.clone(), len) {
                Some(weights) => Self { values: Values::F32(weights), greatest: greatest(last)? },
                None => Self {
                    values: Values::I8(ReadOnly::lent(weights, len)?, ReadOnly::lent(last, panels.out)?),
                    greatest: Vec::new().into(),
                },
            },
            (weights, scales, Some(last), None) => {
                let weights = ReadOnly::lent(weights, len)?;
                let values = Values::Words(weights, ReadOnly::lent(scales, panels.out)?);
                Self { values, greatest: greatest(last)? }
            }
            (values, factors, Some(scales), Some(last)) => {
                let (values_len, factors_len) = nibbles_lens(panels.width, blocking.depth);
                let lens = [values_len, factors_len].map(|len| panels.count() * len);
                let nibbles = Nibbles::lent(values, lens[0], factors, lens[1])?;
                let values = Values::Nibbles(nibbles, ReadOnly::lent(scales, panels.out)?);
                Self { values, greatest: greatest(last)? }
            }
            _ => return None,
        })
    }

    /// What each output's results are to be multiplied with, if its weights are integers.
    pub fn scales(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(_) => None,
            Values::I8(_, scales) | Values::Words(_, scales) | Values::Nibbles(_, scales) => {
                Some(scales.as_slice())
            }
        }
    }
}

impl Values {
    /// See [`super::WinogradWords::of_f32`].
    pub fn of_f32(weight: &[f32], panels: &Panels, depth: usize) -> Self {
        Self::F32(at_rest(weight, panels, depth).into())
    }

    /// See [`super::WinogradWords::of_i8`].
    pub fn of_i8(weight: &[i8], scales: Vec<f32>, panels: &Panels, depth: usize) -> Self {
        assert_eq!(scales.len(), panels.out, "one scale for each of {} columns", panels.out);
        Self::I8(at_rest(weight, panels, depth).into(), scales.into())
    }

    /// See [`super::WinogradWords::of_floats_in_words`].
    pub fn of_floats_in_words(weight: &[f32], panels: &Panels, depth: usize) -> Self {
        let (mut words, mut scales) = (Vec::with_capacity(weight.len()), Vec::with_capacity(panels.out));
        for filters in weight.chunks_exact(9 * depth) {
            let (scale, inverse) =
                scale_of(filters.iter().fold(0.0, |most: f32, w| most.max(w.abs())), 32767.0);
            scales.push(scale);
            words.extend(filters.iter().map(|w| round_to_word(w * inverse)));
        }
        Self::Words(at_rest(&words, panels, depth).into(), scales.into())
    }

    /// See [`super::WinogradWords::of_grouped`].
    pub fn of_grouped(weight: Grouped<'_>, panels: &Panels, depth: usize) -> Self {
        assert!(depth > 0);
        let out = panels.out;
        let (filter, filter_scales) = (depth * 9, depth.div_ceil(GROUP) * 9);
        assert_eq!(weight.values.len(), out * filter, "weights of {out} x {depth} x 3 x 3");
        assert_eq!(weight.scales.len(), out * filter_scales, "scales of {out} x {depth} x 3 x 3");
        let filters =
            weight.values.par_chunks_exact(filter).zip(weight.scales.par_chunks_exact(filter_scales));
        let largest = filters.map(|(values, scales)| {
            let groups = values.chunks(GROUP * 9).zip(scales.as_chunks::<9>().0);
            let taps = groups
                .flat_map(|(values, scales)| values.as_chunks::<9>().0.iter().map(move |v| (v, scales)));
            let weights = taps.flat_map(|(values, scales)| values.iter().zip(scales));
            weights.map(|(&value, scale)| (f32::from(value) * scale).abs()).fold(0.0, f32::max)
        });
        let largest: Vec<f32> = largest.collect();
        let width = panels.width;
        let line = 9 * width;
        let (values_len, factors_len) = nibbles_lens(width, depth);
        let mut values = AlignedBuf::zeros(panels.count() * values_len);
        let mut factors = AlignedBuf::zeros(panels.count() * factors_len);
        let panels_values = values.as_mut_slice().par_chunks_exact_mut(values_len);
        let packed = panels_values.zip(factors.as_mut_slice().par_chunks_exact_mut(factors_len));
        packed.enumerate().for_each_init(Vec::new, |placed, (panel, (values, factors))| {
            let columns = panels.columns(panel);
            placed.clear();
            placed.resize(depth * line, 0);
            place(&weight.values[columns.start * filter..], filter, columns.len(), placed, width);
            let lines = placed.chunks_exact(line).zip(values.chunks_exact_mut(nibbles::line_bytes(line)));
            lines.for_each(|(line, to)| nibbles::pack_line(line, to));
            for (column, o) in columns.enumerate() {
                let scales = &weight.scales[o * filter_scales..][..filter_scales];
                for (factor, &scale) in factors[column..].iter_mut().step_by(width).zip(scales) {
                    *factor = nibbles::factor(scale, nibbles::unit(largest[o]));
                }
            }
        });
        let scales: Vec<f32> = largest.into_iter().map(nibbles::word_unit).collect();
        Self::Nibbles(Nibbles { values: values.into(), factors: factors.into() }, scales.into())
    }

    fn parts(&self) -> Vec<&[u8]> {
        match self {
            Self::F32(weights) => vec![weights.bytes()],
            Self::I8(weights, scales) => vec![weights.bytes(), scales.bytes()],
            Self::Words(weights, scales) => vec![weights.bytes(), scales.bytes()],
            Self::Nibbles(Nibbles { values, factors }, scales) => {
                vec![values.bytes(), factors.bytes(), scales.bytes()]
            }
        }
    }
}

/// How long a panel's values and factors of four bits are.
fn nibbles_lens(width: usize, depth: usize) -> (usize, usize) {
    (depth * nibbles::line_bytes(9 * width), depth.div_ceil(GROUP) * 9 * width)
}

/// The weights of some input channels of a panel of `width` columns, `[channels][3 * 3][width]`, of `depth` in all.
#[inline(always)]
pub fn unpack(
    nibbles: &Nibbles,
    panel: usize,
    depth: usize,
    width: usize,
    channels: Range<usize>,
    to: &mut [i16],
) {
    let line = 9 * width;
    let values = &nibbles.values.as_slice()[panel * depth * nibbles::line_bytes(line)..];
    let factors = &nibbles.factors.as_slice()[panel * depth.div_ceil(GROUP) * line..];
    for (channel, to) in channels.zip(to.chunks_exact_mut(line)) {
        let values = &values[channel * nibbles::line_bytes(line)..][..nibbles::line_bytes(line)];
        nibbles::unpack_line(values, &factors[channel / GROUP * line..][..line], to, nibbles::word);
    }
}

/// `weight`, `[out][depth][3 * 3]`, as [`Weights`] lie.
fn at_rest<T: Interleave>(weight: &[T], panels: &Panels, depth: usize) -> Vec<T> {
    assert!(depth > 0);
    let filter = depth * 9;
    assert_eq!(weight.len(), panels.out * filter, "weights of {} x {depth} x 3 x 3", panels.out);
    let width = panels.width;
    let mut placed = vec![T::default(); panels.count() * filter * width];
    placed.par_chunks_exact_mut(filter * width).enumerate().for_each(|(panel, to)| {
        let columns = panels.columns(panel);
        place(&weight[columns.start * filter..], filter, columns.len(), to, width);
    });
    placed
}

/// Some filters of `weight` as the first columns of a panel.
fn place<T: Interleave>(weight: &[T], filter: usize, columns: usize, to: &mut [T], width: usize) {
    /// As many as stay in the L1 cache while one column after the other is written.
    const PLACES: usize = 128;
    for (block, to) in to.chunks_mut(PLACES * width).enumerate() {
        T::interleave(&weight[block * PLACES..], filter, columns, to, width);
    }
}
