//! Weights of four bits at rest: two in a byte, and for each group of inputs a factor that makes them integers of one scale.
//!
//! A product unpacks what it is about to read, so that the kernels are those of bytes or words. A line is what some
//! inputs have for all columns of a panel; what these inputs are, the products say.

use super::read_only::{LentBytes, ReadOnly};

/// Neighboring inputs of an output, at one tap, that share a scale.
pub const GROUP: usize = 32;

/// Bits of a factor below the point.
const FRACTION: u32 = 8;

/// The largest value times its factor, before the point.
const LARGEST: f32 = 127.0;

/// Weights `scales[..] * values[..]`, with a scale for each group.
#[derive(Clone, Copy)]
pub struct Grouped<'a> {
    /// Each from -8 to 7.
    pub values: &'a [i8],
    pub scales: &'a [f32],
}

/// Lines one after the other.
#[derive(Clone)]
pub(super) struct Nibbles {
    /// Value j of a line is in the lower half of its byte j, or, beyond the line's middle, in the upper half of byte j
    /// less the middle.
    pub values: ReadOnly<u8>,
    /// As many for each group as its lines have columns.
    pub factors: ReadOnly<i16>,
}

impl Nibbles {
    /// Those that somebody keeps, so many values' bytes and factors.
    pub fn lent(
        values: LentBytes,
        values_len: usize,
        factors: LentBytes,
        factors_len: usize,
    ) -> Option<Self> {
        Some(Self {
            values: ReadOnly::lent(values, values_len)?,
            factors: ReadOnly::lent(factors, factors_len)?,
        })
    }
}

/// The scale of an output whose largest weight, or pair of weights, is this large: for integers up to 127.
pub(super) fn unit(largest: f32) -> f32 {
    largest / LARGEST
}

/// [`unit`] of what [`word`] makes.
pub(super) fn word_unit(largest: f32) -> f32 {
    unit(largest) / (1u32 << FRACTION) as f32
}

/// What values of a group of this scale are multiplied with.
pub(super) fn factor(scale: f32, unit: f32) -> i16 {
    // The cast saturates, but only of a group whose values are all zero.
    if unit > 0.0 { (scale / unit * (1u32 << FRACTION) as f32).round_ties_even() as i16 } else { 0 }
}

/// A weight as one byte: at most half a [`unit`] off, or a hair more.
#[inline(always)]
pub(super) fn byte(value: i16, factor: i16) -> i8 {
    const HALF: i16 = 1 << (FRACTION - 1);
    (value.wrapping_mul(factor).wrapping_add(HALF) >> FRACTION) as i8
}

/// A weight as one word, but for its factor's rounding exact.
#[inline(always)]
pub(super) fn word(value: i16, factor: i16) -> i16 {
    value.wrapping_mul(factor)
}

/// Bytes of a line of so many values.
pub(super) const fn line_bytes(values: usize) -> usize {
    values.div_ceil(2)
}

/// Writes `line` to as many bytes as it takes.
pub(super) fn pack_line(line: &[i8], to: &mut [u8]) {
    let half = |value: i8| (value + 8).cast_unsigned() & 0xf;
    let (low, high) = line.split_at(line_bytes(line.len()));
    for (at, (to, low)) in to.iter_mut().zip(low).enumerate() {
        *to = half(*low) | (half(high.get(at).copied().unwrap_or(0)) << 4);
    }
}

/// A line's values as `make` makes them of each and its factor.
#[inline(always)]
pub(super) fn unpack_line<T: Copy + Default>(
    line: &[u8],
    factors: &[i16],
    to: &mut [T],
    make: impl Fn(i16, i16) -> T,
) {
    let (low, high) = to.split_at_mut(line.len());
    let (low_factors, high_factors) = factors.split_at(line.len());
    unpack_half(line, low_factors, low, |byte, factor| make(i16::from(byte & 0xf) - 8, factor));
    unpack_half(&line[..high.len()], high_factors, high, |byte, factor| {
        make(i16::from(byte >> 4) - 8, factor)
    });
}

/// What `make` makes of each byte and its factor, some at a time in arrays of their own, so that compilers take them as
/// vectors.
#[inline(always)]
fn unpack_half<T: Copy + Default>(line: &[u8], factors: &[i16], to: &mut [T], make: impl Fn(u8, i16) -> T) {
    const ABREAST: usize = 16;
    let (lines, line) = line.as_chunks::<ABREAST>();
    let (many_factors, factors) = factors.as_chunks::<ABREAST>();
    let (many, to) = to.as_chunks_mut::<ABREAST>();
    for ((to, line), factors) in many.iter_mut().zip(lines).zip(many_factors) {
        let (line, factors) = (*line, *factors);
        let mut made = [T::default(); ABREAST];
        for at in 0..ABREAST {
            made[at] = make(line[at], factors[at]);
        }
        *to = made;
    }
    for ((to, &byte), &factor) in to.iter_mut().zip(line).zip(factors) {
        *to = make(byte, factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_length_come_back() {
        for len in 1..40 {
            let line: Vec<i8> = (0..len).map(|at| (at * 5 % 16) as i8 - 8).collect();
            let factors: Vec<i16> = (0..len).map(|at| at as i16 * 37 - 300).collect();
            let mut bytes = vec![0; line_bytes(len)];
            pack_line(&line, &mut bytes);
            let mut values = vec![0; len];
            unpack_line(&bytes, &factors, &mut values, word);
            let expected: Vec<i16> = line.iter().zip(&factors).map(|(&v, f)| i16::from(v) * f).collect();
            assert_eq!(values, expected);
        }
    }

    #[test]
    fn weights_become_integers_of_one_scale() {
        // Groups of very different scales, the widest at its limits.
        for (scale, value) in [(0.01, -8), (0.01, 7), (-0.003, -8), (0.0002, 5), (1e-6, 7), (0.0, 7)] {
            let unit = unit(0.08);
            let factor = factor(scale, unit);
            let weight = scale * f32::from(value);
            let found = f32::from(byte(value, factor)) * unit;
            assert!((weight - found).abs() < 0.52 * unit, "{weight} {found}");
            let found = f32::from(word(value, factor)) * word_unit(0.08);
            assert!((weight - found).abs() < 0.017 * unit, "{weight} {found}");
        }
        assert_eq!((byte(-8, factor(1.0, unit(8.0))), byte(7, factor(8.0 / 7.0, unit(8.0)))), (-127, 127));
        assert_eq!((factor(1.0, 0.0), factor(f32::MAX, 1e-3)), (0, i16::MAX));
    }
}
