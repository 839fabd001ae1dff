//! What tensors take in a safetensors file: their parts, types and shapes, before any value is read.

use safetensors::Dtype;

use super::storage::{FloatType, Storage};
use super::tensors::{COLUMNS, SCALE, TensorSet};
use crate::quantize::Bits;
use crate::quantize::grid::GROUP;
use crate::quantize::grouped::packed_len;

/// What a file's header says of a tensor, or of the scales or columns' factors of one.
#[derive(Debug, Clone)]
pub struct Slot {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Slot {
    /// Bytes in the file.
    pub fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// The rows of groups in a weight of some shape.
#[derive(Clone, Copy)]
pub struct Groups {
    pub outputs: usize,
    pub inputs: usize,
    pub taps: usize,
}

impl Groups {
    pub fn of(shape: &[usize]) -> Self {
        let side = |at: usize| shape.get(at).copied().unwrap_or(1);
        Self { outputs: side(0), inputs: side(1), taps: shape.iter().skip(2).product() }
    }

    /// Of the scales of a weight of `shape`.
    pub fn scales_shape(self, shape: &[usize]) -> Vec<usize> {
        let kernel = shape.iter().skip(2).copied();
        [self.outputs, self.inputs.div_ceil(GROUP)].into_iter().chain(kernel).collect()
    }

    /// Values of a row.
    pub fn row(self) -> usize {
        self.inputs * self.taps
    }

    /// Of the bytes that hold the values.
    pub fn written_shape(self) -> Vec<usize> {
        vec![self.outputs, packed_len(self.row())]
    }
}

impl Storage<'_> {
    /// The slots of a file for the tensor called `name`, which is `written` there, if it holds floats.
    pub fn slots(self, tensors: &TensorSet, name: &str, written: &str) -> Vec<Slot> {
        let shape = tensors.view(name).map_or(&[][..], |view| view.shape);
        let slot = |suffix: &str, dtype, shape| Slot { name: format!("{written}{suffix}"), dtype, shape };
        let float = match self.floats() {
            FloatType::F32 => Dtype::F32,
            FloatType::F16 => Dtype::F16,
        };
        let mut slots = match self.bits(name, shape) {
            Bits::Sixteen => return vec![slot("", float, shape.to_vec())],
            Bits::Eight => {
                vec![slot("", Dtype::I8, shape.to_vec()), slot(SCALE, Dtype::F32, vec![shape[0]])]
            }
            Bits::Four => {
                let groups = Groups::of(shape);
                let scales = slot(SCALE, Dtype::F16, groups.scales_shape(shape));
                vec![slot("", Dtype::U8, groups.written_shape()), scales]
            }
        };
        // Those of a rounded weight stay.
        let stored = || tensors.view(&format!("{name}{COLUMNS}")).map_or(0, |columns| columns.len());
        let columns = self.columns(name).map_or_else(stored, <[f32]>::len);
        if columns > 0 {
            slots.push(slot(COLUMNS, Dtype::F32, vec![columns]));
        }
        slots
    }

    /// Bytes that the tensors called `names` will take in a file.
    pub fn bytes<'a>(self, tensors: &TensorSet, names: impl Iterator<Item = &'a str>) -> u64 {
        let of = |name: &str| self.slots(tensors, name, name).iter().map(Slot::len).sum::<usize>();
        names.map(|name| of(name) as u64).sum()
    }
}
