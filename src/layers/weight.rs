//! A layer's weights between file and kernel: stacked, reordered and packed for the precision they run in.

use anyhow::Result;
use rayon::prelude::*;

use crate::kernels::{GROUP, Grouped, Isa, PackedF32, PackedI8, PackedWords, Winograd, WinogradWords};
use crate::quantize::{GroupedWeight, QuantizedWeight, Weight};

/// Weights of several layers, one after the other: floats if one of them is, of four bits only if all of them are.
///
/// # Errors
/// When weights of four bits are too large to become bytes.
pub fn stack(mut parts: Vec<Weight>) -> Result<Weight> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    if parts.iter().any(|part| matches!(part, Weight::Float(_))) {
        return Ok(Weight::Float(parts.into_iter().map(Weight::into_f32).collect::<Vec<_>>().concat()));
    }
    if let Some(all) = parts.iter().map(grouped).collect::<Option<Vec<_>>>()
        && let Some(GroupedWeight { inputs, taps, .. }) = all.first()
    {
        let values = all.iter().map(|part| &part.values[..]).collect::<Vec<_>>().concat();
        let scales = all.iter().map(|part| &part.scales[..]).collect::<Vec<_>>().concat();
        return Ok(Weight::Int4(GroupedWeight {
            inputs: *inputs,
            taps: *taps,
            values,
            scales,
            columns: None,
        }));
    }
    let (mut values, mut scales) = (Vec::new(), Vec::new());
    for part in parts {
        let part = match part {
            Weight::Int8(part) => part,
            Weight::Int4(part) => part.to_bytes()?,
            Weight::Float(_) => continue,
        };
        assert!(part.columns.is_none(), "columns' factors are applied before weights are stacked");
        values.push(part.values);
        scales.push(part.scales);
    }
    Ok(Weight::Int8(QuantizedWeight { values: values.concat(), scales: scales.concat(), columns: None }))
}

fn grouped(part: &Weight) -> Option<&GroupedWeight> {
    match part {
        Weight::Int4(part) => Some(part),
        _ => None,
    }
}

/// What a kernel makes of a layer's weights, `[out, in, taps]` in a file.
#[derive(Debug, Clone, Copy)]
pub struct Packing {
    pub outputs: usize,
    pub inputs: usize,
    pub taps: usize,
    pub form: Form,
    /// Whether products of 16-bit integers may take the place of others.
    pub in_words: bool,
    /// Whether they are to take the place of all floats.
    pub all_in_words: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// The outputs' first half times GELU of their second.
    Gated,
    /// A 3x3 convolution that Winograd's algorithm can do.
    Winograd {
        /// Over so many pixels that transforming its weights at each call costs next to nothing.
        large_maps: bool,
    },
}

/// Weights as a kernel reads them.
pub enum Packed {
    F32(PackedF32),
    I8(PackedI8),
    Words(PackedWords),
    Winograd(Winograd),
    WinogradWords(WinogradWords),
}

pub fn pack(weight: Weight, packing: Packing, isa: Isa) -> Packed {
    let Packing { outputs, inputs, taps, form, in_words, all_in_words } = packing;
    match weight {
        Weight::Float(values) => {
            if all_in_words && matches!(form, Form::Winograd { .. }) {
                return Packed::WinogradWords(WinogradWords::of_floats_in_words(
                    &values, outputs, inputs, isa,
                ));
            }
            if in_words && form == (Form::Winograd { large_maps: true }) {
                return Packed::WinogradWords(WinogradWords::of_f32(&values, outputs, inputs, isa));
            }
            if in_words && taps == 1 {
                return Packed::Words(match form {
                    Form::Gated => PackedWords::pack_gated(&values, outputs / 2, inputs, isa),
                    Form::Plain | Form::Winograd { .. } => PackedWords::pack(&values, outputs, inputs, isa),
                });
            }
            let weight = taps_before_inputs(values, inputs, taps);
            match form {
                Form::Plain | Form::Winograd { large_maps: false } => {
                    Packed::F32(PackedF32::pack(&weight, outputs, taps, inputs, isa))
                }
                Form::Gated => Packed::F32(PackedF32::pack_gated(&weight, outputs / 2, inputs, isa)),
                Form::Winograd { .. } => Packed::Winograd(Winograd::new(weight, outputs, inputs, isa)),
            }
        }
        Weight::Int8(QuantizedWeight { values, scales, columns }) => {
            assert!(columns.is_none(), "columns' factors are applied before weights are packed");
            if in_words && matches!(form, Form::Winograd { .. }) {
                return Packed::WinogradWords(WinogradWords::of_i8(&values, scales, outputs, inputs, isa));
            }
            let weight = taps_before_inputs(values, inputs, taps);
            match form {
                Form::Gated => Packed::I8(PackedI8::pack_gated(&weight, &scales, outputs / 2, inputs, isa)),
                Form::Plain | Form::Winograd { .. } => {
                    Packed::I8(PackedI8::pack(&weight, &scales, outputs, taps, inputs, isa))
                }
            }
        }
        Weight::Int4(GroupedWeight { values, scales, columns, .. }) => {
            assert!(columns.is_none(), "columns' factors are applied before weights are packed");
            if in_words && matches!(form, Form::Winograd { .. }) {
                let weight = Grouped { values: &values, scales: &scales };
                return Packed::WinogradWords(WinogradWords::of_grouped(weight, outputs, inputs, isa));
            }
            let groups = inputs.div_ceil(GROUP);
            let weight = Grouped {
                values: &taps_before_inputs(values, inputs, taps),
                scales: &taps_before_inputs(scales, groups, taps),
            };
            Packed::I8(match form {
                Form::Gated => PackedI8::pack_gated_grouped(weight, outputs / 2, inputs, isa),
                Form::Plain | Form::Winograd { .. } => {
                    PackedI8::pack_grouped(weight, outputs, taps, inputs, isa)
                }
            })
        }
    }
}

/// `[out, in, taps]` as `[out, taps, in]`, the order in which channels-last pixels are read.
pub fn taps_before_inputs<T: Copy + Send>(mut weight: Vec<T>, inputs: usize, taps: usize) -> Vec<T> {
    if taps > 1 {
        // Filter by filter in place: whole weights are among the largest blocks of memory that there are.
        weight.par_chunks_mut(inputs * taps).for_each_init(Vec::new, |from, filter| {
            from.clear();
            from.extend_from_slice(filter);
            for (tap, to) in filter.chunks_exact_mut(inputs).enumerate() {
                for (to, from) in to.iter_mut().zip(from[tap..].iter().step_by(taps)) {
                    *to = *from;
                }
            }
        });
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_come_before_inputs() {
        let weight = vec![0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112];
        let expected = [0, 10, 1, 11, 2, 12, 100, 110, 101, 111, 102, 112];
        assert_eq!(taps_before_inputs(weight, 2, 3), expected);
    }

    #[test]
    fn a_stack_has_the_most_bits_of_its_parts() {
        let int8 = || Weight::Int8(QuantizedWeight { values: vec![1, -2], scales: vec![0.5], columns: None });
        let int4 = || {
            let (values, scales) = (vec![7, -2], vec![0.5]);
            Weight::Int4(GroupedWeight { inputs: 2, taps: 1, values, scales, columns: None })
        };
        let Weight::Int8(both) = stack(vec![int8(), int8()]).unwrap() else { panic!("two int8 parts") };
        assert_eq!((both.values, both.scales), (vec![1, -2, 1, -2], vec![0.5, 0.5]));
        let Weight::Float(mixed) = stack(vec![int8(), Weight::Float(vec![3.0, 4.0])]).unwrap() else {
            panic!("a float part")
        };
        assert_eq!(mixed, [0.5, -1.0, 3.0, 4.0]);
        let Weight::Int4(both) = stack(vec![int4(), int4()]).unwrap() else {
            panic!("two parts of four bits")
        };
        assert_eq!((both.values, both.scales), (vec![7, -2, 7, -2], vec![0.5, 0.5]));
        let Weight::Int8(mixed) = stack(vec![int4(), int8()]).unwrap() else { panic!("an int8 part") };
        assert_eq!((mixed.values, mixed.scales), (vec![127, -36, 1, -2], vec![3.5 / 127.0, 0.5]));
        assert_eq!(
            stack(vec![int4(), Weight::Float(vec![3.0])]).unwrap(),
            Weight::Float(vec![3.5, -1.0, 3.0])
        );
    }
}
