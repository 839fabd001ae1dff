//! Rows of weights turned into columns, which is how vectors of outputs read them; what a row is, the callers say.

use std::ops::Range;

/// Elements of which rows can be interleaved.
pub(super) trait Interleave: Copy + Default + Send + Sync {
    /// `to[place][row] = from[row][place]` for as many places as `to` has, `width` apart, of `rows` rows that begin
    /// `stride` apart.
    ///
    /// # Panics
    /// If there are more rows than `width`, or `from` ends too early.
    fn interleave(from: &[Self], stride: usize, rows: usize, to: &mut [Self], width: usize) {
        interleave_rows(from, stride, 0..rows, to, width);
    }
}

impl Interleave for f32 {}
impl Interleave for i16 {}

impl Interleave for i8 {
    /// Eight by eight in registers, since a byte takes as long to store as eight.
    fn interleave(from: &[Self], stride: usize, rows: usize, to: &mut [Self], width: usize) {
        assert!(rows <= width);
        let places = to.len() / width;
        let (rows_of_eights, places_of_eights) = (rows / 8 * 8, places / 8 * 8);
        for row in (0..rows_of_eights).step_by(8) {
            for place in (0..places_of_eights).step_by(8) {
                let mut words = [0; 8];
                for (i, word) in words.iter_mut().enumerate() {
                    let bytes: [i8; 8] = from[(row + i) * stride + place..].as_chunks().0[0];
                    *word = u64::from_le_bytes(bytes.map(i8::cast_unsigned));
                }
                for (i, word) in transposed(words).into_iter().enumerate() {
                    let bytes = word.to_le_bytes().map(u8::cast_signed);
                    to[(place + i) * width + row..][..8].copy_from_slice(&bytes);
                }
            }
            let rest = &mut to[places_of_eights * width..];
            interleave_rows(&from[places_of_eights..], stride, row..row + 8, rest, width);
        }
        interleave_rows(from, stride, rows_of_eights..rows, to, width);
    }
}

/// One element after the other.
fn interleave_rows<T: Copy>(from: &[T], stride: usize, rows: Range<usize>, to: &mut [T], width: usize) {
    assert!(rows.end <= width);
    let places = to.len() / width;
    for row in rows.filter(|_| places > 0) {
        let from = &from[row * stride..][..places];
        for (to, &value) in to[row..].iter_mut().step_by(width).zip(from) {
            *to = value;
        }
    }
}

/// A matrix of 8 x 8 bytes transposed: blocks of four, two and one change places (Warren, Hacker's Delight, 7-3).
fn transposed(mut rows: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in
        [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff)]
    {
        for row in (0..8).filter(|row| row & distance == 0) {
            let other = row + distance;
            let changed = ((rows[row] >> (8 * distance)) ^ rows[other]) & mask;
            rows[other] ^= changed;
            rows[row] ^= changed << (8 * distance);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        for (rows, places) in (1..20).flat_map(|rows| (1..20).map(move |places| (rows, places))) {
            let (width, stride) = (rows + places % 3, places + rows % 4);
            let from: Vec<i8> = (0..rows * stride).map(|i| (i * 7 % 255) as u8 as i8).collect();
            let mut to = vec![0; places * width];
            i8::interleave(&from, stride, rows, &mut to, width);
            let floats: Vec<f32> = from.iter().map(|&value| f32::from(value)).collect();
            let mut to_floats = vec![0.0; to.len()];
            f32::interleave(&floats, stride, rows, &mut to_floats, width);
            for (i, (&value, &float)) in to.iter().zip(&to_floats).enumerate() {
                let (place, row) = (i / width, i % width);
                let expected = if row < rows { from[row * stride + place] } else { 0 };
                assert_eq!(
                    (value, float),
                    (expected, f32::from(expected)),
                    "{rows} x {places}, {place}, {row}"
                );
            }
        }
    }
}
