//! A model's tensors by name, float or quantized, from as many files as it has; what the names mean is decided elsewhere.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::file::{BLOCK, TensorFile, TensorView};
use super::prepacked::Prepacked;
use super::random::RandomTensors;
use crate::kernels::LentBytes;
use crate::quantize::grid::GROUP;
use crate::quantize::{Balance, GroupedWeight, Matrix, Origin, Policy, QuantizedWeight, Tensors, Weight};

/// What is laid over weights as they are read, e.g. adapters that add to them.
pub trait Overlay: Send + Sync {
    /// Whether the tensor called `name` does not stay as it is stored.
    fn changes(&self, name: &str) -> bool;

    /// What becomes of the `stored` weight of the tensor called `name`.
    ///
    /// # Errors
    /// When the two don't fit.
    fn apply(&self, name: &str, shape: &[usize], stored: Weight) -> Result<Weight>;
}

/// The tensors of a model, each under one canonical name whatever file and spelling it came from.
#[derive(Clone, Default)]
pub struct TensorSet {
    files: Vec<Arc<TensorFile>>,
    index: BTreeMap<String, (usize, String)>,
    quantized: bool,
    /// Components that came from elsewhere, by prefix, and whether quantized tensors were there.
    taken: BTreeMap<String, bool>,
    /// Answers for what no file holds, in a model that is only there to be measured.
    random: Option<Arc<RandomTensors>>,
    /// Change what [`Self::weight`] gives, one after the other.
    overlays: Vec<Arc<dyn Overlay>>,
    /// What the file of this number holds, as kernels read it.
    prepacked: Option<(usize, Arc<Prepacked>)>,
}

impl TensorSet {
    /// Every tensor there could be, of random values in whatever shape it is asked for; none has a name or
    /// a [`Self::view`] before that.
    pub fn random() -> Self {
        Self { random: Some(Arc::default()), ..Self::default() }
    }

    /// How much of the time spent in [`Self::weight`] went into making up random values.
    pub fn time_inventing(&self) -> Duration {
        self.random.as_ref().map_or(Duration::ZERO, |random| random.spent())
    }

    /// Adds the tensors of `file` for which `canonical` gives a name.
    ///
    /// # Errors
    /// When two tensors come to the same name.
    pub fn add(&mut self, file: TensorFile, canonical: impl Fn(&str) -> Option<String>) -> Result<()> {
        let number = self.files.len();
        for stored in file.names() {
            let Some(name) = canonical(stored) else { continue };
            self.quantized |= file.is_rounded(stored);
            if self.index.insert(name.clone(), (number, stored.to_owned())).is_some() {
                bail!("tensor '{name}' occurs twice");
            }
        }
        self.files.push(Arc::new(file));
        Ok(())
    }

    /// The same tensors with `overlay` merged into their weights as these are read.
    #[must_use]
    pub fn merged(&self, overlay: impl Overlay + 'static) -> Self {
        let mut merged = self.clone();
        merged.overlays.push(Arc::new(overlay));
        merged
    }

    /// Whether something laid over it changes the tensor called `name`.
    pub(super) fn is_changed(&self, name: &str) -> bool {
        self.overlays.iter().any(|overlay| overlay.changes(name))
    }

    /// The file of the model itself, if it is one.
    pub(super) fn first_file(&self) -> Option<&TensorFile> {
        self.files.first().map(|file| &**file)
    }

    /// The same tensors, of which [`Self::first_file`] holds those that `prepacked` holds packed.
    pub(super) fn with_prepacked(self, prepacked: Prepacked) -> Self {
        Self { prepacked: Some((0, Arc::new(prepacked))), ..self }
    }

    /// Whether a file holds some of them packed.
    pub fn is_prepacked(&self) -> bool {
        self.prepacked.is_some()
    }

    /// The kind and parts of packed weights, those called `names` one after the other, unless one of them comes from
    /// elsewhere or something laid over it changes it.
    pub fn prepacked(&self, names: impl IntoIterator<Item = String>) -> Option<(&str, Vec<LentBytes>)> {
        let (file, prepacked) = self.prepacked.as_ref()?;
        let mut first = None;
        for name in names {
            if self.index.get(&name)?.0 != *file || self.is_changed(&name) {
                return None;
            }
            first.get_or_insert(name);
        }
        prepacked.parts(&first?)
    }

    /// Replaces the tensors of the component called `component` by those of `other`.
    pub(super) fn take_component(&mut self, component: &str, other: Self) {
        self.index.retain(|name, _| prefix(name) != component);
        self.taken.insert(component.to_owned(), other.quantized);
        let first = self.files.len();
        self.files.extend(other.files);
        let taken = other.index.into_iter().filter(|(name, _)| prefix(name) == component);
        self.index.extend(taken.map(|(name, (file, stored))| (name, (first + file, stored))));
    }

    /// Whether there are tensors of the component called `component`.
    pub fn has_component(&self, component: &str) -> bool {
        self.random.is_some() || self.contains_below(&format!("{component}."))
    }

    /// Whether some tensor's name begins with `start`.
    pub(super) fn contains_below(&self, start: &str) -> bool {
        let mut from = self.index.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        from.next().is_some_and(|(name, _)| name.starts_with(start))
    }

    /// Whether some tensors are of eight or four bits.
    pub fn is_quantized(&self) -> bool {
        self.quantized || self.taken.values().any(|quantized| *quantized)
    }

    /// What the weight called `name` comes from.
    pub fn origin(&self, name: &str) -> Origin {
        match self.view(name) {
            Ok(view) if view.is_int8() => Origin::Int8,
            // What is added to weights of four bits makes them bytes.
            Ok(view) if view.is_int4() => {
                if self.is_changed(name) {
                    Origin::Int8
                } else {
                    Origin::Int4
                }
            }
            _ if self.taken.get(prefix(name)).copied().unwrap_or(self.quantized) => Origin::Kept,
            _ => Origin::Float,
        }
    }

    /// Canonical names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name) || self.random.as_ref().is_some_and(|random| random.contains(name))
    }

    /// # Errors
    /// When there is no such tensor.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.index
            .get(name)
            .and_then(|(file, stored)| self.files[*file].view(stored))
            .with_context(|| format!("tensor '{name}' is missing"))
    }

    /// Has the system read the tensor called `name` from disk in the meantime, where it can.
    pub fn read_ahead(&self, name: &str) {
        if let Ok(view) = self.view(name) {
            view.read_ahead();
        }
    }

    /// The names of all tensors but the scales and columns' factors of others.
    pub fn parameters(&self) -> impl Iterator<Item = &str> + Clone {
        self.index.keys().map(String::as_str).filter(|name| !self.is_part(name))
    }

    fn is_part(&self, name: &str) -> bool {
        let weight = name.strip_suffix(SCALE).or_else(|| name.strip_suffix(COLUMNS));
        weight
            .and_then(|weight| self.view(weight).ok())
            .is_some_and(|weight| weight.is_int8() || weight.is_int4())
    }

    /// Bytes that the tensor called `name` has in its file, with its scales and columns' factors.
    pub fn stored_len(&self, name: &str) -> usize {
        self.view(name).map_or(0, |view| view.stored_len()) + self.parts_len(name)
    }

    /// Bytes of the scales and columns' factors of the tensor called `name`.
    fn parts_len(&self, name: &str) -> usize {
        let parts = [SCALE, COLUMNS].map(|suffix| format!("{name}{suffix}"));
        parts
            .iter()
            .filter(|part| self.is_part(part))
            .filter_map(|part| self.view(part).ok())
            .map(|part| part.stored_len())
            .sum()
    }

    /// The factors that equalize what `policy` has computed in int8; see [`Balance`].
    ///
    /// # Errors
    /// Names the tensor that is unusable.
    pub fn balance(&self, policy: &Policy) -> Result<Balance> {
        Balance::of(self, policy)
    }

    /// A tensor in the form it is stored in, checked to have `shape`. Trailing dimensions of 1 don't count,
    /// since a 1x1 convolution and a linear layer are stored either way.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, or holds neither finite floats nor int8 values with one
    /// scale for each output, nor four-bit values with one for each group.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let stored = self.stored(name, shape)?;
        self.overlays.iter().try_fold(stored, |weight, overlay| overlay.apply(name, shape, weight))
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(random) = &self.random {
            return Ok(Weight::Float(random.values(name, shape)));
        }
        let view = self.view_of(name, shape)?;
        read(name, &view, self.factors(name, &view)?)
    }

    /// # Errors
    /// When there is no such tensor, or it has another shape.
    fn view_of(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.view(name)?;
        ensure!(
            without_trailing_ones(view.shape) == without_trailing_ones(shape),
            "tensor '{name}' has shape {:?} where {shape:?} is expected",
            view.shape
        );
        Ok(view)
    }

    /// What the values of the tensor are multiplied with if they are integers.
    fn factors(&self, name: &str, view: &TensorView<'_>) -> Result<Option<Factors<'_>>> {
        if !view.is_int8() && !view.is_int4() {
            return Ok(None);
        }
        let outputs =
            *view.shape.first().with_context(|| format!("int8 tensor '{name}' is a single value"))?;
        let (mut expected, mut kind) = (vec![outputs], "int8");
        if let (true, &[_, inputs, ref kernel @ ..]) = (view.is_int4(), view.shape) {
            expected.push(inputs.div_ceil(GROUP));
            expected.extend(kernel);
            kind = "four-bit";
        }
        let scale_name = format!("{name}{SCALE}");
        let scales =
            self.view(&scale_name).with_context(|| format!("tensor '{name}' holds {kind} values"))?;
        ensure!(
            without_trailing_ones(scales.shape) == without_trailing_ones(&expected),
            "tensor '{scale_name}' has shape {:?} where {expected:?} is expected",
            scales.shape
        );
        let inner = view.shape.get(1..).unwrap_or_default();
        let inputs = inner.first().copied().unwrap_or(1);
        Ok(Some(Factors {
            scales,
            columns: self.columns(name)?,
            inputs,
            taps: inner.iter().skip(1).product(),
        }))
    }

    /// The values of some rows of a matrix in f32, checked as by [`Self::weight`]; no others are
    /// read unless something is laid over them.
    ///
    /// # Errors
    /// As [`Self::weight`].
    ///
    /// # Panics
    /// If there are not as many rows.
    pub fn rows(&self, name: &str, shape: [usize; 2], rows: &[usize]) -> Result<Vec<f32>> {
        if let Some(random) = &self.random {
            return Ok(random.rows(name, shape, rows));
        }
        let view = self.view_of(name, &shape)?;
        if self.is_changed(name) || !view.has_rows() {
            let values = self.f32(name, &shape)?;
            return Ok(rows.iter().flat_map(|row| &values[row * shape[1]..][..shape[1]]).copied().collect());
        }
        let factors = self.factors(name, &view)?;
        let mut values = Vec::with_capacity(rows.len() * shape[1]);
        for &row in rows {
            let factors = factors.as_ref().map(|factors| factors.of_row(row));
            values.append(&mut read(name, &view.row(row), factors)?.into_f32());
        }
        Ok(values)
    }

    /// The values of a tensor in f32, whatever it is stored as, checked as by [`Self::weight`].
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weight(name, shape).map(Weight::into_f32)
    }
}

impl Tensors for TensorSet {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.parameters())
    }

    fn origin(&self, name: &str) -> Option<Origin> {
        self.index.contains_key(name).then(|| self.origin(name))
    }

    /// Without what is laid over them: factors fit any weights, and those of adapters take long to multiply.
    fn matrix(&self, name: &str) -> Result<Matrix> {
        let shape = self.view(name)?.shape;
        let values = self.stored(name, shape)?.into_f32();
        Ok(Matrix { values, columns: shape.iter().skip(1).product() })
    }

    fn columns(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let factors_name = format!("{name}{COLUMNS}");
        let Ok(factors) = self.view(&factors_name) else { return Ok(None) };
        let inputs = self.view(name)?.shape.iter().skip(1).product::<usize>();
        ensure!(
            without_trailing_ones(factors.shape) == without_trailing_ones(&[inputs]),
            "tensor '{factors_name}' has shape {:?} where [{inputs}] is expected",
            factors.shape
        );
        let factors = factors.to_f32().with_context(|| format!("tensor '{factors_name}'"))?;
        ensure!(
            factors.iter().all(|factor| (1.0 / LARGEST_FACTOR..=LARGEST_FACTOR).contains(factor)),
            "tensor '{factors_name}' holds factors that are negative, NaN or not from 1e-7 to 1e7"
        );
        Ok(Some(factors))
    }
}

/// What integers are multiplied with.
struct Factors<'a> {
    /// One for each row, or each group of a row.
    scales: TensorView<'a>,
    /// One for each column.
    columns: Option<Vec<f32>>,
    inputs: usize,
    taps: usize,
}

impl Factors<'_> {
    fn of_row(&self, row: usize) -> Self {
        Self { scales: self.scales.row(row), columns: self.columns.clone(), ..*self }
    }
}

/// The values of the tensor called `name`, or of a part of it, with the factors of those that are integers.
fn read(name: &str, view: &TensorView<'_>, factors: Option<Factors<'_>>) -> Result<Weight> {
    if let Some(factors) = factors {
        return rounded(name, view, factors);
    }
    let values = view.to_f32().with_context(|| format!("tensor '{name}'"))?;
    // Without a way out of the loop it runs on vectors.
    let odd = |values: &[f32]| values.iter().fold(false, |odd, value| odd | !value.is_finite());
    ensure!(!values.par_chunks(BLOCK).any(odd), "tensor '{name}' holds values that are infinite or NaN");
    Ok(Weight::Float(values))
}

fn rounded(name: &str, view: &TensorView<'_>, factors: Factors<'_>) -> Result<Weight> {
    let Factors { scales, columns, inputs, taps } = factors;
    let scales = scales.to_f32().with_context(|| format!("tensor '{name}{SCALE}'"))?;
    if view.is_int4() {
        ensure!(
            scales.iter().all(|scale| *scale != 0.0 && scale.abs() <= LARGEST_GROUP_SCALE),
            "tensor '{name}{SCALE}' holds scales that are zero, NaN or beyond {LARGEST_GROUP_SCALE:e}, which no \
             trained model has"
        );
        let values = view.to_i4().with_context(|| format!("tensor '{name}'"))?;
        return Ok(Weight::Int4(GroupedWeight { inputs, taps, values, scales, columns }));
    }
    ensure!(
        scales.iter().all(|scale| (0.0..=LARGEST_SCALE).contains(scale)),
        "tensor '{name}{SCALE}' holds scales that are negative, NaN or beyond {LARGEST_SCALE:e}, which no trained \
         model has"
    );
    let values = view.to_i8().with_context(|| format!("tensor '{name}'"))?;
    Ok(Weight::Int8(QuantizedWeight { values, scales, columns }))
}

/// Appended to a quantized tensor's name for that of its scales.
pub(super) const SCALE: &str = "_scale";

/// The same for that of the factors of its columns.
pub(super) const COLUMNS: &str = "_columns";

/// Of a column: what equalization makes is well below.
const LARGEST_FACTOR: f32 = 1e7;

/// The largest scale of an int8 tensor: its weights then are as large as f16 can hold.
const LARGEST_SCALE: f32 = 516.0;

/// The same of four bits, where the largest weight is seven or eight steps.
const LARGEST_GROUP_SCALE: f32 = 9358.0;

/// What stands before a name's first dot.
fn prefix(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn without_trailing_ones(shape: &[usize]) -> &[usize] {
    let kept = shape.iter().rposition(|&size| size != 1).map_or(0, |last| last + 1);
    &shape[..kept]
}
