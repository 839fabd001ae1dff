//! Packed weights that outlive a run: what their layout is called, handing them over, taking them back; files are `checkpoint`'s.

use anyhow::Result;

use super::weight::{self, Form, Packed, Packing};
use super::{Backend, Params};
use crate::files::Fingerprint;
use crate::kernels::{
    GROUP, Isa, LentBytes, PackedF32, PackedI8, PackedWords, Shape, Winograd, WinogradWords,
};
use crate::quantize::{GroupedWeight, QuantizedWeight, Weight};

/// Hands a layer's weights to the back end's keeper, if it has one.
pub(super) fn hand_over(backend: &Backend, params: &Params, packed: &Packed) -> Result<()> {
    let Some(keeper) = &backend.keeper else { return Ok(()) };
    let (kind, parts) = packed.parts();
    keeper.keep(&params.path(&"weight"), kind, &parts)
}

/// A layer's weights, if the model's files hold them packed and they are what `packing` asks for.
pub(super) fn take(parts: &[Params], packing: Packing, isa: Isa) -> Option<Packed> {
    let (first, rest) = parts.split_first()?;
    let Backend { int8: true, simulation: None, calibration: None, keeper: None, .. } = first.backend else {
        return None;
    };
    let names = [first.path(&"weight")].into_iter().chain(rest.iter().map(|part| part.path(&"weight")));
    let (kind, parts) = first.tensors().prepacked(names)?;
    Packed::of_parts(kind, parts, packing, isa)
}

impl Packed {
    /// What these weights are called, and the bytes that they are.
    fn parts(&self) -> (&'static str, Vec<&[u8]>) {
        match self {
            Self::F32(weights) => ("f32", weights.parts()),
            Self::I8(weights) => ("i8", weights.parts()),
            Self::Words(weights) => ("words", weights.parts()),
            Self::Winograd(weights) => ("winograd", weights.parts()),
            Self::WinogradWords(weights) => ("winograd-words", weights.parts()),
        }
    }

    fn of_parts(kind: &str, parts: Vec<LentBytes>, packing: Packing, isa: Isa) -> Option<Self> {
        let Packing { outputs, inputs, taps, form, .. } = packing;
        let gated = form == Form::Gated;
        let out = if gated { outputs / 2 } else { outputs };
        let shape = Shape { out, taps, depth: inputs, gated };
        let is_winograd = matches!(form, Form::Winograd { .. });
        match kind {
            "f32" => PackedF32::of_parts(parts, shape, isa).map(Self::F32),
            "i8" => PackedI8::of_parts(parts, shape, isa).map(Self::I8),
            "words" if taps == 1 => PackedWords::of_parts(parts, shape, isa).map(Self::Words),
            "winograd" if is_winograd => Winograd::of_parts(parts, shape, isa).map(Self::Winograd),
            "winograd-words" if is_winograd => {
                WinogradWords::of_parts(parts, shape, isa).map(Self::WinogradWords)
            }
            _ => None,
        }
    }
}

/// Every form there is, with as many taps as layers of it have.
const FORMS: [(Form, usize); 5] = [
    (Form::Plain, 1),
    (Form::Plain, 9),
    (Form::Gated, 1),
    (Form::Winograd { large_maps: false }, 9),
    (Form::Winograd { large_maps: true }, 9),
];

/// A name for how weights are packed for an instruction set: another one as soon as some weights would be packed
/// otherwise, for which it packs a few of every kind.
pub fn layout(isa: Isa) -> String {
    const INPUTS: usize = GROUP + 8;
    const OUTPUTS: usize = 72;
    let mut all = Vec::new();
    for (form, taps) in FORMS {
        for in_words in [false, true] {
            let packing =
                Packing { outputs: OUTPUTS, inputs: INPUTS, taps, form, in_words, all_in_words: false };
            for weight in samples(packing) {
                let packed = weight::pack(weight, packing, isa);
                let (kind, parts) = packed.parts();
                all.extend_from_slice(kind.as_bytes());
                for part in parts {
                    all.extend_from_slice(&part.len().to_le_bytes());
                    all.extend_from_slice(part);
                }
            }
        }
    }
    format!("{} {}", isa.name(), Fingerprint::of_bytes(&all).whole)
}

/// Weights of every kind in the shape of `packing`.
fn samples(Packing { outputs, inputs, taps, .. }: Packing) -> [Weight; 3] {
    let count = outputs * inputs * taps;
    let value = |at: usize, largest: usize| (at * 31 % (2 * largest + 1)) as i8 - largest as i8;
    let values = |largest: usize| (0..count).map(|at| value(at, largest)).collect::<Vec<i8>>();
    let scales = |count: usize| (0..count).map(|at| 0.01 + 0.001 * (at % 7) as f32).collect::<Vec<f32>>();
    let floats = values(127).into_iter().map(f32::from).collect();
    let int8 = QuantizedWeight { values: values(127), scales: scales(outputs), columns: None };
    let groups = outputs * inputs.div_ceil(GROUP) * taps;
    let int4 = GroupedWeight { inputs, taps, values: values(7), scales: scales(groups), columns: None };
    [Weight::Float(floats), Weight::Int8(int8), Weight::Int4(int4)]
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::kernels::{Lender, lent_len};

    /// Parts one after the other, each in whole cache lines.
    struct Shelf(Vec<u8>, usize);

    impl Lender for Shelf {
        fn bytes(&self) -> &[u8] {
            &self.0[self.1..]
        }

        fn returned(&self, _: &Range<usize>) {}
    }

    fn shelved(parts: &[&[u8]]) -> Vec<LentBytes> {
        let len: usize = parts.iter().map(|part| lent_len(part.len())).sum();
        let mut bytes = vec![0; len + 64];
        let first = bytes.as_ptr().align_offset(64);
        let mut at = first;
        let mut ranges = Vec::new();
        for part in parts {
            bytes[at..][..part.len()].copy_from_slice(part);
            ranges.push(at - first..at - first + lent_len(part.len()));
            at += lent_len(part.len());
        }
        let shelf = Arc::new(Shelf(bytes, first));
        ranges.into_iter().map(|range| LentBytes::new(shelf.clone(), range)).collect()
    }

    #[test]
    fn every_kind_comes_back_and_fits_no_other_shape() {
        for &isa in Isa::available() {
            let mut kinds = std::collections::BTreeSet::new();
            for (form, taps) in FORMS {
                for (in_words, inputs) in [(false, 37), (true, 37), (true, 130)] {
                    let packing = Packing { outputs: 54, inputs, taps, form, in_words, all_in_words: false };
                    for weight in samples(packing) {
                        let packed = weight::pack(weight, packing, isa);
                        let (kind, parts) = packed.parts();
                        kinds.insert((kind, parts.len()));
                        let again = Packed::of_parts(kind, shelved(&parts), packing, isa).unwrap();
                        assert_eq!(again.parts(), (kind, parts.clone()), "{isa} {packing:?}");
                        for other in [
                            Packing { outputs: 2 * 54, ..packing },
                            Packing { inputs: inputs + 64, ..packing },
                        ] {
                            assert!(Packed::of_parts(kind, shelved(&parts), other, isa).is_none(), "{kind}");
                        }
                        assert!(Packed::of_parts(kind, shelved(&parts[1..]), packing, isa).is_none());
                        assert!(Packed::of_parts("u4", shelved(&parts), packing, isa).is_none());
                    }
                }
            }
            // Bytes and nibbles; the words' floats, bytes and nibbles.
            let expected = [
                ("f32", 1),
                ("i8", 3),
                ("i8", 4),
                ("winograd", 1),
                ("winograd-words", 2),
                ("winograd-words", 4),
                ("words", 2),
            ];
            assert!(kinds.into_iter().eq(expected), "{isa}");
        }
    }

    #[test]
    fn layouts_have_names() {
        let names: std::collections::BTreeSet<String> =
            Isa::available().iter().copied().map(layout).collect();
        assert_eq!(names.len(), Isa::available().len());
        assert_eq!(layout(Isa::best()), layout(Isa::best()));
    }
}
