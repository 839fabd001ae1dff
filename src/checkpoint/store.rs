//! Writing tensors to a safetensors file in another type, one in memory at a time.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::entry::LONGEST;
use super::sizes::{Groups, Slot};
use super::storage::{FloatType, Storage};
use super::tensors::{COLUMNS, SCALE, TensorSet};
use super::write_error::WriteError;
use crate::files;
use crate::quantize::grouped;
use crate::quantize::{self, Bits, GroupedWeight, QuantizedWeight, Weight};

/// Fails where `bytes` are more than the disk of `folder` has left; a system that does not tell is no reason to.
///
/// # Errors
/// Says how much is free.
pub fn check_space(folder: &Path, bytes: u64) -> Result<(), WriteError> {
    let free = fs4::available_space(folder).unwrap_or(u64::MAX);
    if bytes <= free {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    Err(WriteError::Disk(anyhow::anyhow!(
        "the model takes {:.0} MB, and {} has {:.0} MB left",
        megabytes(bytes),
        folder.display(),
        megabytes(free)
    )))
}

/// A tensor that is converted when it is written.
pub struct Pending<'a> {
    tensors: &'a TensorSet,
    name: &'a str,
    shape: Vec<usize>,
    form: Form,
}

enum Form {
    Floats(FloatType),
    /// Multiples of these scales, one for each output, and of these factors, one for each input.
    Int8 {
        scales: Vec<f32>,
        columns: Option<Vec<f32>>,
    },
    /// Multiples of these scales, one for each group, and of these factors, one for each input.
    Int4 {
        groups: Groups,
        scales: Arc<[f16]>,
        columns: Option<Vec<f32>>,
    },
    /// The scales of int8 values or the columns' factors.
    Factors(Vec<f32>),
    /// The scales of four-bit values.
    GroupScales(Arc<[f16]>),
    /// int8 already.
    Rounded,
    /// Of four bits already.
    RoundedInt4(Groups),
}

/// What is to be written for tensors that come in pairs of canonical name and name in the file. Reads them all
/// once, because writing can't fail half way for a value that has no place in the type.
///
/// # Errors
/// Names the tensor that is not made of finite numbers the type can hold, or the pattern that matches none; or when
/// `stopped` says so, which is asked before each tensor.
pub fn plan<'a>(
    tensors: &'a TensorSet,
    names: impl Iterator<Item = (&'a str, String)>,
    storage: Storage<'_>,
    stopped: &dyn Fn() -> bool,
) -> Result<Vec<(String, Pending<'a>)>, WriteError> {
    if let Some(policy) = storage.policy() {
        policy.check(tensors.parameters())?;
    }
    let mut planned = Vec::new();
    for (name, written) in names {
        if stopped() {
            return Err(WriteError::Stopped);
        }
        let shape = tensors.view(name)?.shape.to_vec();
        let weight = tensors.weight(name, &shape)?;
        let bits = match &weight {
            Weight::Int8(_) => storage.bits_of_bytes(name, &shape),
            Weight::Float(_) | Weight::Int4(_) => storage.bits(name, &shape),
        };
        let pending = |form: Form, shape: Vec<usize>| Pending { tensors, name, shape, form };
        let mut part = |suffix: &str, form: Form, shape: Vec<usize>| {
            planned.push((format!("{written}{suffix}"), pending(form, shape)));
        };
        let said = || format!("tensor '{name}'");
        let (form, columns) = match (weight, bits) {
            (weight, Bits::Sixteen) => {
                let floats = storage.floats();
                check(&weight.into_f32(), floats).with_context(said)?;
                (Form::Floats(floats), None)
            }
            // What has lost bits can't get them back.
            (Weight::Int4(GroupedWeight { scales, columns, .. }), _) => {
                let groups = Groups::of(&shape);
                let scales = scales.into_iter().map(f16::from_f32).collect();
                part(SCALE, Form::GroupScales(scales), groups.scales_shape(&shape));
                (Form::RoundedInt4(groups), columns)
            }
            (Weight::Int8(QuantizedWeight { scales, columns, .. }), Bits::Eight) => {
                part(SCALE, Form::Factors(scales), vec![shape[0]]);
                (Form::Rounded, columns)
            }
            (Weight::Float(mut values), Bits::Eight) => {
                let columns = storage.columns(name).map(<[f32]>::to_vec);
                let scales = divided(&mut values, columns.as_deref())
                    .and_then(|()| quantize::scales(&values, shape[0]))
                    .with_context(said)?;
                part(SCALE, Form::Factors(scales.clone()), vec![shape[0]]);
                (Form::Int8 { scales, columns: columns.clone() }, columns)
            }
            (weight, Bits::Four) => {
                let columns = match &weight {
                    Weight::Int8(QuantizedWeight { columns: Some(columns), .. }) => Some(columns.clone()),
                    _ => storage.columns(name).map(<[f32]>::to_vec),
                };
                let groups @ Groups { inputs, taps, .. } = Groups::of(&shape);
                let mut values = weight.into_f32();
                let scales = divided(&mut values, columns.as_deref())
                    .and_then(|()| check(&values, FloatType::F16))
                    .and_then(|()| GroupedWeight::scales(&values, inputs, taps))
                    .with_context(said)?;
                let scales: Arc<[f16]> = scales.into_iter().map(f16::from_f32).collect();
                part(SCALE, Form::GroupScales(scales.clone()), groups.scales_shape(&shape));
                (Form::Int4 { groups, scales, columns: columns.clone() }, columns)
            }
        };
        if let Some(columns) = columns {
            let count = columns.len();
            part(COLUMNS, Form::Factors(columns), vec![count]);
        }
        part("", form, shape);
    }
    Ok(planned)
}

fn divided(values: &mut [f32], columns: Option<&[f32]>) -> Result<()> {
    columns.map_or(Ok(()), |columns| quantize::divide_columns(values, columns))
}

fn check(values: &[f32], floats: FloatType) -> Result<()> {
    let largest = values.par_iter().map(|value| value.abs()).reduce(|| 0.0, larger);
    ensure!(largest.is_finite(), "holds values that are infinite or NaN");
    let limit = match floats {
        FloatType::F32 => f32::MAX,
        FloatType::F16 => f16::MAX.to_f32(),
    };
    ensure!(largest <= limit, "holds {largest:e}, which is too large for f16");
    Ok(())
}

/// The larger number; NaN counts as the largest.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// Writes planned tensors to `path`: first to a file beside it, which is then renamed. `stopped` is asked before each
/// tensor.
///
/// # Errors
/// When the file can't be written, or a tensor not be read again.
pub fn write(
    mut tensors: Vec<(String, Pending<'_>)>,
    metadata: HashMap<String, String>,
    path: &Path,
    stopped: &dyn Fn() -> bool,
) -> Result<(), WriteError> {
    tensors.sort_by(|(a, left), (b, right)| order((a, left.dtype()), (b, right.dtype())));
    let header = header(tensors.iter().map(|(name, tensor)| tensor.slot(name)), metadata, ALIGNMENT)?;
    let written = files::replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in &tensors {
            if stopped() {
                return Err(WriteError::Stopped);
            }
            file.write_all(&tensor.bytes()?)?;
        }
        Ok(())
    });
    written.map_err(|error| error.of(path))
}

/// The widest tensors first, so that all are aligned.
fn order(a: (&str, Dtype), b: (&str, Dtype)) -> Ordering {
    (Reverse(a.1), a.0).cmp(&(Reverse(b.1), b.0))
}

/// Bytes of the file that has these tensors.
///
/// # Errors
/// As [`write`].
pub fn length(mut slots: Vec<Slot>, metadata: HashMap<String, String>) -> Result<u64> {
    slots.sort_by(|a, b| order((&a.name, a.dtype), (&b.name, b.dtype)));
    let data: usize = slots.iter().map(Slot::len).sum();
    let header = header(slots.into_iter(), metadata, ALIGNMENT)?;
    Ok((size_of::<u64>() + header.len() + data) as u64)
}

/// Of the widest type that is written, as safetensors asks for.
const ALIGNMENT: usize = 8;

/// A safetensors header, filled with spaces so that what follows begins at a multiple of `alignment` bytes.
///
/// # Errors
/// When two tensors have one name, or there are more than any file may have.
pub fn header(
    slots: impl Iterator<Item = Slot>,
    metadata: HashMap<String, String>,
    alignment: usize,
) -> Result<Vec<u8>> {
    let mut end = 0;
    let infos = slots.map(|slot| {
        let start = end;
        end += slot.len();
        let Slot { name, dtype, shape } = slot;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let header =
        Metadata::new(Some(metadata), infos.collect()).context("the tensors make no valid header")?;
    let mut header = serde_json::to_vec(&header).context("writing the header as JSON")?;
    const LENGTH: usize = size_of::<u64>();
    header.resize((LENGTH + header.len()).next_multiple_of(alignment) - LENGTH, b' ');
    ensure!(header.len() <= LONGEST, "the header would have {} bytes, more than a file may", header.len());
    Ok(header)
}

impl Pending<'_> {
    /// Gives the tensor another shape of as many values.
    pub fn reshape(&mut self, shape: Vec<usize>) {
        assert_eq!(shape.iter().product::<usize>(), self.count(), "{shape:?} for '{}'", self.name);
        self.shape = shape;
    }

    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The tensor's own shape, if it is written in four bits, as bytes.
    pub fn four_bit_shape(&self) -> Option<&[usize]> {
        matches!(self.form, Form::Int4 { .. } | Form::RoundedInt4(_)).then_some(&self.shape)
    }

    /// As the file's header has it.
    fn written_shape(&self) -> Vec<usize> {
        match self.form {
            Form::Int4 { groups, .. } | Form::RoundedInt4(groups) => groups.written_shape(),
            _ => self.shape.clone(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self.form {
            Form::Floats(FloatType::F32) | Form::Factors(_) => Dtype::F32,
            Form::Floats(FloatType::F16) | Form::GroupScales(_) => Dtype::F16,
            Form::Int8 { .. } | Form::Rounded => Dtype::I8,
            Form::Int4 { .. } | Form::RoundedInt4(_) => Dtype::U8,
        }
    }

    /// Under its name in the file.
    fn slot(&self, name: &str) -> Slot {
        Slot { name: name.to_owned(), dtype: self.dtype(), shape: self.written_shape() }
    }

    fn values(&self) -> Result<Vec<f32>> {
        self.tensors.f32(self.name, self.tensors.view(self.name)?.shape)
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        if let (Form::Floats(_), Ok(view)) = (&self.form, self.tensors.view(self.name))
            && view.dtype == self.dtype()
            && !self.tensors.is_changed(self.name)
        {
            return view.bytes().with_context(|| format!("tensor '{}'", self.name));
        }
        Ok(Cow::Owned(match &self.form {
            Form::Floats(FloatType::F32) => f32_bytes(&self.values()?),
            Form::Factors(factors) => f32_bytes(factors),
            Form::Floats(FloatType::F16) => {
                let values = self.values()?;
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(&values);
                f16_bytes(&halves)
            }
            Form::GroupScales(scales) => f16_bytes(scales),
            Form::Rounded => {
                let weight = self.tensors.weight(self.name, self.tensors.view(self.name)?.shape)?;
                let Weight::Int8(weight) = weight else { bail!("tensor '{}' is no longer int8", self.name) };
                weight.values.into_iter().map(i8::cast_unsigned).collect()
            }
            Form::RoundedInt4(groups) => {
                let weight = self.tensors.weight(self.name, self.tensors.view(self.name)?.shape)?;
                let Weight::Int4(weight) = weight else { bail!("tensor '{}' has other bits", self.name) };
                grouped::pack(&weight.values, groups.row())
            }
            Form::Int4 { groups, scales, columns } => {
                let mut values = self.values()?;
                divided(&mut values, columns.as_deref())?;
                let scales = scales.iter().map(|scale| scale.to_f32()).collect();
                let weight = GroupedWeight::with_scales(&values, groups.inputs, groups.taps, scales);
                grouped::pack(&weight.values, groups.row())
            }
            Form::Int8 { scales, columns } => {
                let mut values = self.values()?;
                divided(&mut values, columns.as_deref())?;
                let values = quantize::round_with_scales(&values, scales);
                values.into_iter().map(i8::cast_unsigned).collect()
            }
        }))
    }
}

fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_that_fit_are_written() {
        assert!(check(&[0.0, -65504.0], FloatType::F16).is_ok());
        assert!(check(&[1e30], FloatType::F32).is_ok());
        assert!(check(&[], FloatType::F16).is_ok());
        let refused = |values: &[f32], floats| check(values, floats).unwrap_err().to_string();
        assert_eq!(refused(&[1.0, -1e5], FloatType::F16), "holds 1e5, which is too large for f16");
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for values in [[value, 1.0], [1.0, value]] {
                let message = refused(&values, FloatType::F32);
                assert_eq!(message, "holds values that are infinite or NaN");
            }
        }
    }
}
