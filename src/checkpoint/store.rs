//! Writing tensors to a safetensors file in another type, one in memory at a time; what goes into which file is decided elsewhere.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::View;

use super::tensors::{SCALE, TensorSet};
use crate::quantize::{self, Policy, Treatment};
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
/// Names the tensor that is not made of finite numbers the type can hold, or the pattern that matches none.
pub fn plan<'a>(
    tensors: &'a TensorSet,
    names: impl Iterator<Item = (&'a str, String)>,
    storage: Storage<'_>,
) -> Result<Vec<(String, Pending<'a>)>> {
    if let Storage::Int8(policy) = storage {
        policy.check(tensors.parameters())?;
    }
    let mut planned = Vec::new();
    for (name, written) in names {
        let shape = tensors.view(name)?.shape.to_vec();
        let pending = |form: Form, shape: Vec<usize>| Pending { tensors, name, shape, form };
        let values = tensors.f32(name, &shape)?;
        match storage {
            // A vector has no outputs to scale one by one.
            Storage::Int8(policy) if shape.len() >= 2 && policy.treatment(name) != Treatment::Float => {
                let scales =
                    quantize::scales(&values, shape[0]).with_context(|| format!("tensor '{name}'"))?;
                let per_output = pending(Form::Scales(scales.clone()), vec![scales.len()]);
                planned.push((format!("{written}{SCALE}"), per_output));
                planned.push((written, pending(Form::Int8(scales), shape)));
            }
            _ => {
                let floats = storage.floats();
                check(&values, floats).with_context(|| format!("tensor '{name}'"))?;
                planned.push((written, pending(Form::Floats(floats), shape)));
            }
        }
    }
    Ok(planned)
}

fn check(values: &[f32], floats: FloatType) -> Result<()> {
    let largest = values.par_iter().map(|value| value.abs()).reduce(|| 0.0, larger);
    ensure!(largest.is_finite(), "holds values that are infinite or no numbers");
    let limit = match floats {
        FloatType::F32 => f32::MAX,
        FloatType::F16 => f16::MAX.to_f32(),
    };
    ensure!(largest <= limit, "holds {largest:e}, which is too large for f16");
    Ok(())
}

/// The larger number; what is no number counts as the largest.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// Writes planned tensors to `path`: first to a file beside it, which is then renamed.
///
/// # Errors
/// When the file can't be written.
pub fn write(
    tensors: Vec<(String, Pending<'_>)>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<()> {
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|error| anyhow::anyhow!("can't write {}: {error}", path.display()))?;
    share(path).with_context(|| format!("can't set the permissions of {}", path.display()))
}

/// Gives a file that was written as private the permissions of any new file.
#[cfg(unix)]
fn share(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let everyone = std::fs::Permissions::from_mode(0o666);
    let ordinary = tempfile::Builder::new().permissions(everyone).tempfile_in(folder)?;
    std::fs::set_permissions(path, ordinary.as_file().metadata()?.permissions())
}

#[cfg(not(unix))]
fn share(_: &Path) -> std::io::Result<()> {
    Ok(())
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

    fn values(&self) -> Vec<f32> {
        let shape = self.tensors.view(self.name).map(|view| view.shape);
        shape
            .and_then(|shape| self.tensors.f32(self.name, shape))
            .expect("a tensor that could be read when it was planned")
    }
}

impl View for Pending<'_> {
    fn dtype(&self) -> Dtype {
        match self.form {
            Form::Floats(FloatType::F32) | Form::Scales(_) => Dtype::F32,
            Form::Floats(FloatType::F16) => Dtype::F16,
            Form::Int8(_) => Dtype::I8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let (Form::Floats(_), Ok(view)) = (&self.form, self.tensors.view(self.name))
            && view.dtype == self.dtype()
            && let Ok(bytes) = view.bytes()
        {
            return bytes;
        }
        Cow::Owned(match &self.form {
            Form::Floats(FloatType::F32) => f32_bytes(&self.values()),
            Form::Scales(scales) => f32_bytes(scales),
            Form::Floats(FloatType::F16) => {
                let values = self.values();
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(&values);
                halves.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            Form::Int8(scales) => {
                let values = quantize::round_with_scales(&self.values(), scales);
                values.into_iter().map(i8::cast_unsigned).collect()
            }
        })
    }

    fn data_len(&self) -> usize {
        let width = match self.dtype() {
            Dtype::F32 => 4,
            Dtype::F16 => 2,
            _ => 1,
        };
        self.count() * width
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
                assert_eq!(message, "holds values that are infinite or no numbers");
            }
        }
    }
}
