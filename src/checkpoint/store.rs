//! Writing tensors to a safetensors file in another type, one in memory at a time.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::entry::LONGEST;
use super::tensors::{SCALE, TensorSet};
use super::write_error::WriteError;
use crate::files;
use crate::quantize::{self, Policy};
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
}

impl Storage<'_> {
    pub(super) fn precision(self) -> Precision {
        match self {
            Self::Float(FloatType::F32) => Precision::F32,
            Self::Float(FloatType::F16) => Precision::F16,
            Self::Int8(_) => Precision::Int8,
        }
    }

    fn floats(self) -> FloatType {
        match self {
            Self::Float(floats) => floats,
            Self::Int8(_) => FloatType::F16,
        }
    }

    /// Whether a tensor is written as int8 values and scales.
    fn rounds(self, name: &str, shape: &[usize]) -> bool {
        match self {
            Self::Float(_) => false,
            Self::Int8(policy) => policy.stores_int8(name, shape),
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
            if self.rounds(name, shape) { count + 4 * shape[0] } else { float * count }
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
    /// Multiples of these scales, one for each output.
    Int8(Vec<f32>),
    /// The scales of an int8 tensor.
    Scales(Vec<f32>),
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
    if let Storage::Int8(policy) = storage {
        policy.check(tensors.parameters())?;
    }
    let mut planned = Vec::new();
    for (name, written) in names {
        if stopped() {
            return Err(WriteError::Stopped);
        }
        let shape = tensors.view(name)?.shape.to_vec();
        let pending = |form: Form, shape: Vec<usize>| Pending { tensors, name, shape, form };
        let values = tensors.f32(name, &shape)?;
        if storage.rounds(name, &shape) {
            let scales = quantize::scales(&values, shape[0]).with_context(|| format!("tensor '{name}'"))?;
            let per_output = pending(Form::Scales(scales.clone()), vec![scales.len()]);
            planned.push((format!("{written}{SCALE}"), per_output));
            planned.push((written, pending(Form::Int8(scales), shape)));
        } else {
            let floats = storage.floats();
            check(&values, floats).with_context(|| format!("tensor '{name}'"))?;
            planned.push((written, pending(Form::Floats(floats), shape)));
        }
    }
    Ok(planned)
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
            Form::Floats(FloatType::F32) | Form::Scales(_) => Dtype::F32,
            Form::Floats(FloatType::F16) => Dtype::F16,
            Form::Int8(_) => Dtype::I8,
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
        {
            return view.bytes().with_context(|| format!("tensor '{}'", self.name));
        }
        Ok(Cow::Owned(match &self.form {
            Form::Floats(FloatType::F32) => f32_bytes(&self.values()?),
            Form::Scales(scales) => f32_bytes(scales),
            Form::Floats(FloatType::F16) => {
                let values = self.values()?;
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(&values);
                halves.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            Form::Int8(scales) => {
                let values = quantize::round_with_scales(&self.values()?, scales);
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
