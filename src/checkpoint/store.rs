//! Writing tensors to a safetensors file in another type, one in memory at a time.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::entry::LONGEST;
use super::tensors::{COLUMNS, SCALE, TensorSet};
use super::write_error::WriteError;
use crate::files;
use crate::quantize::{self, Balance, Policy, QuantizedWeight, Weight};
use crate::request::Precision;

/// In which type floats are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
}

/// In which types a model is written.
#[derive(Debug, Clone, Copy)]
pub enum Storage<'a> {
    Float(FloatType),
    /// int8 with a scale per output channel where the policy says so, else f16.
    Int8(&'a Policy),
    /// The same with columns' factors where the balance has some.
    Balanced(&'a Policy, &'a Balance),
}

impl Storage<'_> {
    pub(super) fn precision(self) -> Precision {
        match self {
            Self::Float(FloatType::F32) => Precision::F32,
            Self::Float(FloatType::F16) => Precision::F16,
            Self::Int8(_) | Self::Balanced(..) => Precision::Int8,
        }
    }

    fn floats(self) -> FloatType {
        match self {
            Self::Float(floats) => floats,
            Self::Int8(_) | Self::Balanced(..) => FloatType::F16,
        }
    }

    fn policy(&self) -> Option<&Policy> {
        match self {
            Self::Float(_) => None,
            Self::Int8(policy) | Self::Balanced(policy, _) => Some(policy),
        }
    }

    /// Whether a tensor is written as int8 values and scales.
    fn rounds(self, name: &str, shape: &[usize]) -> bool {
        self.policy().is_some_and(|policy| policy.stores_int8(name, shape))
    }

    /// The factors of the columns of a tensor that is rounded.
    fn columns(&self, name: &str) -> Option<&[f32]> {
        match self {
            Self::Float(_) | Self::Int8(_) => None,
            Self::Balanced(_, balance) => balance.columns(name),
        }
    }

    /// Bytes that the tensors called `names` will take in a file.
    pub(super) fn bytes<'a>(self, tensors: &TensorSet, names: impl Iterator<Item = &'a str>) -> u64 {
        let float = match self.floats() {
            FloatType::F32 => 4,
            FloatType::F16 => 2,
        };
        let of = |name: &str| {
            let shape = tensors.view(name).map_or(&[][..], |view| view.shape);
            let count: usize = shape.iter().product();
            let stored = || tensors.view(&format!("{name}{COLUMNS}")).map_or(0, |columns| columns.len());
            let columns = self.columns(name).map_or_else(stored, <[f32]>::len);
            if self.rounds(name, shape) { count + 4 * (shape[0] + columns) } else { float * count }
        };
        names.map(|name| of(name) as u64).sum()
    }
}

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
    /// The scales or the columns' factors of an int8 tensor.
    Factors(Vec<f32>),
    /// int8 already.
    Rounded,
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
        let pending = |form: Form, shape: Vec<usize>| Pending { tensors, name, shape, form };
        let weight = tensors.weight(name, &shape)?;
        if storage.rounds(name, &shape) {
            let (form, scales, columns) = match weight {
                Weight::Int8(QuantizedWeight { scales, columns, .. }) => (Form::Rounded, scales, columns),
                Weight::Float(mut values) => {
                    let columns = storage.columns(name).map(<[f32]>::to_vec);
                    let scales = divided(&mut values, columns.as_deref())
                        .and_then(|()| quantize::scales(&values, shape[0]))
                        .with_context(|| format!("tensor '{name}'"))?;
                    (Form::Int8 { scales: scales.clone(), columns: columns.clone() }, scales, columns)
                }
            };
            for (suffix, factors) in [(SCALE, Some(scales)), (COLUMNS, columns)] {
                let Some(factors) = factors else { continue };
                let count = factors.len();
                planned.push((format!("{written}{suffix}"), pending(Form::Factors(factors), vec![count])));
            }
            planned.push((written, pending(form, shape)));
        } else {
            let floats = storage.floats();
            check(&weight.into_f32(), floats).with_context(|| format!("tensor '{name}'"))?;
            planned.push((written, pending(Form::Floats(floats), shape)));
        }
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
    // The widest first, so that all are aligned.
    tensors.sort_by(|(a, left), (b, right)| (Reverse(left.dtype()), a).cmp(&(Reverse(right.dtype()), b)));
    let header = header(&tensors, metadata)?;
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

/// A safetensors header, filled with spaces so that what follows is aligned.
fn header(tensors: &[(String, Pending<'_>)], metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.len();
        let (dtype, shape) = (tensor.dtype(), tensor.shape.clone());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let header =
        Metadata::new(Some(metadata), infos.collect()).context("the tensors make no valid header")?;
    let mut header = serde_json::to_vec(&header).context("writing the header as JSON")?;
    header.resize(header.len().next_multiple_of(8), b' ');
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

    fn dtype(&self) -> Dtype {
        match self.form {
            Form::Floats(FloatType::F32) | Form::Factors(_) => Dtype::F32,
            Form::Floats(FloatType::F16) => Dtype::F16,
            Form::Int8 { .. } | Form::Rounded => Dtype::I8,
        }
    }

    /// Bytes in the file.
    fn len(&self) -> usize {
        self.count() * self.dtype().bitsize() / 8
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
                halves.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            Form::Rounded => {
                let weight = self.tensors.weight(self.name, self.tensors.view(self.name)?.shape)?;
                let Weight::Int8(weight) = weight else { bail!("tensor '{}' is no longer int8", self.name) };
                weight.values.into_iter().map(i8::cast_unsigned).collect()
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
