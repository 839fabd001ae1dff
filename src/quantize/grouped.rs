//! Weights of four bits with a scale for each group of inputs, and how they lie in bytes; grids are in `grid`.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::grid::Grid;
use super::gridded::{self, Gridded};
use super::{QuantizedWeight, divide_columns};

/// Weights of one layer at four bits: that of output o, input i and tap t is `scales[o][i / GROUP][t] * columns[i] *
/// values[o][i][t]`, see [`super::grid::GROUP`].
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedWeight {
    pub inputs: usize,
    pub taps: usize,
    /// `[out][inputs][taps]`, each from -8 to 7.
    pub values: Vec<i8>,
    /// `[out][groups][taps]`, finite and not zero; f16 in a file.
    pub scales: Vec<f32>,
    /// `[inputs]`, as of a [`QuantizedWeight`].
    pub columns: Option<Vec<f32>>,
}

impl GroupedWeight {
    /// Rounds `weight`, `[out][inputs][taps]` divided by `columns`, each to the nearest multiple of its group's scale.
    ///
    /// # Errors
    /// When it isn't made of such rows.
    pub fn round(weight: &[f32], inputs: usize, taps: usize, columns: Option<&[f32]>) -> Result<Self> {
        let mut weight = weight.to_vec();
        if let Some(columns) = columns {
            divide_columns(&mut weight, columns)?;
        }
        let scales = Self::scales(&weight, inputs, taps)?;
        Ok(Self { columns: columns.map(<[f32]>::to_vec), ..Self::with_scales(&weight, inputs, taps, scales) })
    }

    /// The same with scales that [`Self::scales`] gave, where columns have been divided out.
    pub fn with_scales(weight: &[f32], inputs: usize, taps: usize, scales: Vec<f32>) -> Self {
        Self::of(Gridded::with_scales(Grid::Nibbles, weight, inputs, taps, scales), None)
    }

    /// The scales of `weight`, `[out][inputs][taps]`, that lose least.
    ///
    /// # Errors
    /// When it isn't made of such rows.
    pub fn scales(weight: &[f32], inputs: usize, taps: usize) -> Result<Vec<f32>> {
        let row = inputs * taps;
        ensure!(
            row > 0 && weight.len().is_multiple_of(row),
            "{} weights are not rows of {inputs} x {taps}",
            weight.len()
        );
        Ok(gridded::scales(Grid::Nibbles, weight, &vec![1.0; row], taps))
    }

    /// What was rounded to [`Grid::Nibbles`] after it had been divided by `columns`.
    pub fn of(Gridded { inputs, taps, values, scales, .. }: Gridded, columns: Option<&[f32]>) -> Self {
        Self { inputs, taps, values, scales, columns: columns.map(<[f32]>::to_vec) }
    }

    pub fn outputs(&self) -> usize {
        self.values.len() / (self.inputs * self.taps)
    }

    /// The weights these stand for, in the same order.
    pub fn dequantize(&self) -> Vec<f32> {
        let row = self.inputs * self.taps;
        let mut weight = Grid::Nibbles.dequantize(&self.values, &self.scales, row, self.taps);
        if let Some(columns) = &self.columns {
            weight.par_chunks_exact_mut(row).for_each(|row| {
                for (weight, column) in row.iter_mut().zip(columns) {
                    *weight *= column;
                }
            });
        }
        weight
    }

    /// The same as bytes, for what takes no groups: nearly as many bits are lost as by rounding floats to bytes.
    ///
    /// # Errors
    /// When products of values and scales are not finite.
    pub fn to_bytes(&self) -> Result<QuantizedWeight> {
        let row = self.inputs * self.taps;
        let weight = Grid::Nibbles.dequantize(&self.values, &self.scales, row, self.taps);
        Ok(QuantizedWeight {
            columns: self.columns.clone(),
            ..QuantizedWeight::round(&weight, self.outputs())?
        })
    }
}

/// Bytes of a row of so many values: the last may be half empty.
pub const fn packed_len(values: usize) -> usize {
    values.div_ceil(2)
}

/// Values from -8 to 7, rows of `row`, two in a byte: the first in its lower half, each 8 more than it stands for.
pub fn pack(values: &[i8], row: usize) -> Vec<u8> {
    let half = |value: Option<&i8>| (value.copied().unwrap_or(0) + 8).cast_unsigned() & 0xf;
    let rows = values.par_chunks(row.max(1));
    rows.flat_map_iter(|row| row.chunks(2).map(|pair| half(pair.first()) | (half(pair.get(1)) << 4)))
        .collect()
}

/// What [`pack`] made bytes of.
pub fn unpack(bytes: &[u8], row: usize) -> Vec<i8> {
    let mut values = vec![0; bytes.len() / packed_len(row).max(1) * row];
    let rows = values.par_chunks_mut(row.max(1)).zip(bytes.par_chunks(packed_len(row).max(1)));
    rows.for_each(|(values, bytes)| {
        for (values, byte) in values.chunks_mut(2).zip(bytes) {
            for (value, half) in values.iter_mut().zip([byte & 0xf, byte >> 4]) {
                *value = half.cast_signed() - 8;
            }
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::super::grid::GROUP;
    use super::*;

    #[test]
    fn two_values_lie_in_a_byte_and_rows_begin_with_one() {
        assert_eq!(pack(&[-8, 7, 0, 1, 2, -1], 3), [0xf0, 0x88, 0xa9, 0x87]);
        for row in [1, 2, 7, 32] {
            let values: Vec<i8> = (0..row * 5).map(|at| (at * 7 % 16) as i8 - 8).collect();
            let bytes = pack(&values, row);
            assert_eq!(bytes.len(), 5 * packed_len(row));
            assert_eq!(unpack(&bytes, row), values);
        }
        assert!(pack(&[], 3).is_empty() && unpack(&[], 3).is_empty());
    }

    #[test]
    fn rounding_is_to_the_nearest_of_a_groups_steps() {
        for (outputs, inputs, taps) in [(1, 1, 1), (3, 32, 1), (2, 70, 9), (4, 33, 1)] {
            let row = inputs * taps;
            let weight: Vec<f32> =
                (0..outputs * row).map(|at| ((at * 37 % 101) as f32 - 47.0) / 50.0).collect();
            let rounded = GroupedWeight::round(&weight, inputs, taps, None).unwrap();
            let groups = inputs.div_ceil(GROUP);
            assert_eq!((rounded.outputs(), rounded.scales.len()), (outputs, outputs * groups * taps));
            let floats = rounded.dequantize();
            for (at, (weight, float)) in weight.iter().zip(&floats).enumerate() {
                let (output, input, tap) = (at / row, at % row / taps, at % taps);
                let scale = rounded.scales[(output * groups + input / GROUP) * taps + tap];
                assert_eq!(*float, scale * f32::from(rounded.values[at]));
                let nearest = (-8..8).map(|value| (weight - scale * value as f32).abs()).fold(9.0, f32::min);
                assert!((weight - float).abs() <= nearest * 1.0001 + 1e-7, "{weight} {float} {scale}");
            }
            let bytes = rounded.to_bytes().unwrap().dequantize();
            let largest = floats.iter().fold(0.0, |largest: f32, float| largest.max(float.abs()));
            assert!(floats.iter().zip(&bytes).all(|(a, b)| (a - b).abs() <= 0.501 * largest / 127.0));
        }
        assert!(GroupedWeight::round(&[1.0; 5], 2, 1, None).is_err());
        assert!(GroupedWeight::round(&[1.0; 5], 0, 1, None).is_err());
    }

    #[test]
    fn columns_are_divided_out_before_rounding() {
        let weight = [7.0, 70.0, -3.5, 0.0];
        let rounded = GroupedWeight::round(&weight, 2, 1, Some(&[1.0, 10.0])).unwrap();
        assert_eq!(rounded.dequantize(), weight);
        assert_eq!(rounded.to_bytes().unwrap().columns, rounded.columns);
    }
}
