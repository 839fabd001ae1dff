//! An adapter's file: which factors belong to which layer, and what they multiply to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde_json::Value;

use super::super::file::TensorFile;
use super::super::signature::refuse_pickle;
use super::built_in;
use super::keys::{Role, split};
use crate::files::{Fingerprint, fingerprint};

/// The largest rank: a full layer of SD 1.5 has less.
const MAX_RANK: usize = 4096;

/// The largest `alpha / rank`; it is about 1 in any file that was trained.
const MAX_SCALE: f32 = 1e4;

/// An adapter's file whose every value has been checked to be a number of ordinary size.
pub struct Adapter {
    path: PathBuf,
    file: TensorFile,
    fingerprint: Fingerprint,
    /// Keys by the layer's part of their names.
    layers: BTreeMap<String, BTreeMap<Role, String>>,
    /// Keys that are no factors.
    others: Vec<String>,
    /// PEFT's settings by `component.name`, which diffusers keeps in the header instead of alphas.
    settings: Value,
}

/// A factor as a matrix: `[rows, the rest]`.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
}

impl Adapter {
    /// Opens a file, or one that is part of the binary, and reads it once.
    ///
    /// # Errors
    /// Names the file and the key that can't be used.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let (file, fingerprint) = match built_in::bytes(path) {
            Some(bytes) => (TensorFile::embedded(bytes)?, Fingerprint::of_safetensors(bytes)?),
            None => {
                refuse_pickle(path)?;
                (TensorFile::open(path)?, fingerprint(path)?)
            }
        };
        let mut layers: BTreeMap<String, BTreeMap<Role, String>> = BTreeMap::new();
        let mut others = Vec::new();
        for key in file.names() {
            let Some((stem, role)) = split(key) else {
                others.push(key.to_owned());
                continue;
            };
            ensure!(
                role != Role::Magnitude,
                "{shown}: '{key}' makes this a DoRA, which is not supported: merge it into a model first"
            );
            if let Some(twice) = layers.entry(stem.to_owned()).or_default().insert(role, key.to_owned()) {
                bail!("{shown}: '{key}' and '{twice}' mean the same");
            }
        }
        let settings = match file.metadata().get("lora_adapter_metadata") {
            Some(text) => serde_json::from_str(text)
                .with_context(|| format!("{shown}: its lora_adapter_metadata is no valid JSON"))?,
            None => Value::Null,
        };
        let adapter = Self { settings, path: path.to_owned(), fingerprint, file, layers, others };
        for key in adapter.layers.values().flat_map(BTreeMap::values) {
            adapter.values(key)?;
        }
        Ok(adapter)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The layers' parts of the keys.
    pub fn stems(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// One key of the layer called `stem`, for messages.
    pub fn key<'a>(&'a self, stem: &'a str) -> &'a str {
        self.layers.get(stem).and_then(|keys| keys.values().next()).map_or(stem, String::as_str)
    }

    /// Keys that are no factors of anything.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// The values of `key` in f32, or why they are unusable.
    fn values(&self, key: &str) -> Result<Vec<f32>> {
        let named = || format!("{}: '{key}'", self.path.display());
        let view = self.file.view(key).with_context(named)?;
        ensure!(!view.is_empty(), "{} is empty (shape {:?})", named(), view.shape);
        let values = match view.dtype {
            // kohya's trainers have written alpha as an integer.
            Dtype::I64 => {
                let bytes = view.bytes().with_context(named)?;
                bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f32).collect()
            }
            _ => view.to_f32().with_context(named)?,
        };
        let unusable = values.iter().find(|value| !value.is_finite() || value.abs() > 65504.0);
        if let Some(value) = unusable {
            bail!("{} holds {value}, which no trained adapter has", named());
        }
        Ok(values)
    }

    fn size(&self, key: &str) -> Result<Size> {
        let view = self.file.view(key).with_context(|| format!("'{key}' is missing"))?;
        let [rows, rest @ ..] = view.shape else { bail!("'{key}' is a single value") };
        ensure!(!rest.is_empty(), "'{key}' has shape {:?} where a matrix is expected", view.shape);
        Ok(Size { rows: *rows, columns: rest.iter().product() })
    }

    fn matrix(&self, key: &str) -> Result<Tensor> {
        let Size { rows, columns } = self.size(key)?;
        Ok(Tensor::from_vec(self.values(key)?, (rows, columns), &Device::Cpu)?)
    }

    /// What the layer called `stem` adds to weights of `shape`, `[outputs, inputs, ..]`, in their order.
    ///
    /// The formulas are those of LoRA (Hu et al. 2021), `LoHa` (Hyeon-Woo et al. 2021, `FedPara`) and `LoKr` (Yeh et
    /// al. 2023, LyCORIS), each times `alpha / rank`; convolutions may have a Tucker core.
    ///
    /// # Errors
    /// Names the file and the key that does not fit.
    pub fn delta(&self, stem: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.layer(stem, shape)?.evaluate(self).with_context(|| format!("{}: '{stem}'", self.path.display()))
    }

    /// Checks that the layer called `stem` has all its factors and that they fit weights of `shape`.
    ///
    /// # Errors
    /// As [`Self::delta`].
    pub fn check(&self, stem: &str, shape: &[usize]) -> Result<()> {
        self.layer(stem, shape).map(|_| ())
    }

    /// The scale of a layer that has no alpha of its own.
    fn default_scale(&self, stem: &str, rank: usize) -> Result<f32> {
        let component = stem.split('.').next().unwrap_or_default();
        let setting = |name: &str| self.settings.get(format!("{component}.{name}"));
        let Some(alpha) = setting("lora_alpha").and_then(Value::as_f64) else { return Ok(1.0) };
        let patterns = setting("alpha_pattern").and_then(Value::as_object);
        ensure!(
            patterns.is_none_or(serde_json::Map::is_empty),
            "'{stem}': alphas by layer (PEFT's alpha_pattern) are not supported"
        );
        let stabilized = setting("use_rslora").and_then(Value::as_bool) == Some(true);
        let rank = if stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / rank) as f32)
    }

    fn layer(&self, stem: &str, shape: &[usize]) -> Result<Layer<'_>> {
        let keys = self.layers.get(stem).with_context(|| format!("no layer '{stem}'"))?;
        Layer::new(self, stem, keys, shape).with_context(|| self.path.display().to_string())
    }
}

/// The product of two factors, `a b`, or with a core the sum over its first two dimensions of
/// `core[n, m, ..] a[n, output] b[m, input]`.
struct Product<'a> {
    a: &'a str,
    b: &'a str,
    core: Option<&'a str>,
    /// Whether `a` is `[output, n]` in spite of a core, as in LoRA.
    a_is_upright: bool,
}

/// One of the two matrices of a Kronecker product.
enum Matrix<'a> {
    Whole(&'a str),
    Product(Product<'a>),
}

enum Form<'a> {
    Low(Product<'a>),
    Hadamard(Product<'a>, Product<'a>),
    Kronecker(Matrix<'a>, Matrix<'a>),
}

/// A layer whose factors fit it.
struct Layer<'a> {
    form: Form<'a>,
    scale: f32,
}

impl<'a> Layer<'a> {
    fn new(
        adapter: &'a Adapter,
        stem: &str,
        keys: &'a BTreeMap<Role, String>,
        shape: &[usize],
    ) -> Result<Self> {
        let key = |role: Role| keys.get(&role).map(String::as_str);
        let any = keys.values().next().map_or("", String::as_str);
        let product = |a: Role, b: Role, core: Role| -> Result<Option<Product<'a>>> {
            match (key(a), key(b)) {
                (Some(first), Some(second)) => {
                    Ok(Some(Product { a: first, b: second, core: key(core), a_is_upright: a == Role::Up }))
                }
                (None, None) => Ok(None),
                (Some(only), None) | (None, Some(only)) => bail!("'{only}' lacks its other factor"),
            }
        };
        let low = product(Role::Up, Role::Down, Role::Mid)?;
        let hada = (
            product(Role::Hada1A, Role::Hada1B, Role::HadaT1)?,
            product(Role::Hada2A, Role::Hada2B, Role::HadaT2)?,
        );
        let part = |whole: Role, product: Option<Product<'a>>| {
            key(whole).map(Matrix::Whole).or(product.map(Matrix::Product))
        };
        let kron = (
            part(Role::Kron1, product(Role::Kron1A, Role::Kron1B, Role::Mid)?),
            part(Role::Kron2, product(Role::Kron2A, Role::Kron2B, Role::KronT2)?),
        );
        let form = match (low, hada, kron) {
            (Some(low), (None, None), (None, None)) => Form::Low(low),
            (None, (Some(first), Some(second)), (None, None)) => Form::Hadamard(first, second),
            (None, (None, None), (Some(first), Some(second))) => Form::Kronecker(first, second),
            _ => bail!("'{any}': its layer's factors are incomplete or of several kinds"),
        };
        let (size, rank) = form.size(adapter)?;
        let expected =
            Size { rows: shape.first().copied().unwrap_or(1), columns: shape.iter().skip(1).product() };
        ensure!(
            (size.rows, size.columns) == (expected.rows, expected.columns),
            "'{any}': its layer's factors make {} x {} weights, but the model's layer has {} x {} ({shape:?})",
            size.rows,
            size.columns,
            expected.rows,
            expected.columns
        );
        let scale = match (key(Role::Alpha), rank) {
            (Some(alpha), Some(rank)) => {
                let value = adapter.values(alpha)?;
                ensure!(value.len() == 1, "'{alpha}' holds {} values where one is expected", value.len());
                let scale = value[0] / rank as f32;
                ensure!(
                    scale.abs() <= MAX_SCALE,
                    "'{alpha}' holds {}, far too much for rank {rank}",
                    value[0]
                );
                scale
            }
            (None, Some(rank)) => {
                let scale = adapter.default_scale(stem, rank)?;
                ensure!(scale.abs() <= MAX_SCALE, "'{any}': its alpha is far too much for rank {rank}");
                scale
            }
            // Whole matrices have no rank to be divided by.
            (_, None) => 1.0,
        };
        Ok(Self { form, scale })
    }

    fn evaluate(&self, adapter: &Adapter) -> Result<Vec<f32>> {
        let delta = match &self.form {
            Form::Low(product) => product.evaluate(adapter)?,
            Form::Hadamard(first, second) => (first.evaluate(adapter)? * second.evaluate(adapter)?)?,
            Form::Kronecker(first, second) => {
                let (first, second) = (first.evaluate(adapter)?, second.evaluate(adapter)?);
                let ((a, b), (c, d)) = (first.dims2()?, second.dims2()?);
                let first = first.reshape((a, 1, b, 1))?;
                first.broadcast_mul(&second.reshape((1, c, 1, d))?)?
            }
        };
        Ok((delta * f64::from(self.scale))?.flatten_all()?.to_vec1()?)
    }
}

impl Form<'_> {
    /// The size of the weights and the rank, if factors have one.
    fn size(&self, adapter: &Adapter) -> Result<(Size, Option<usize>)> {
        match self {
            Self::Low(product) => product.size(adapter).map(|(size, rank)| (size, Some(rank))),
            Self::Hadamard(first, second) => {
                let ((first_size, rank), (second_size, _)) = (first.size(adapter)?, second.size(adapter)?);
                ensure!(
                    (first_size.rows, first_size.columns) == (second_size.rows, second_size.columns),
                    "'{}' and '{}' make weights of different sizes",
                    first.a,
                    second.a
                );
                Ok((first_size, Some(rank)))
            }
            Self::Kronecker(first, second) => {
                let ((a, first_rank), (b, second_rank)) = (first.size(adapter)?, second.size(adapter)?);
                let size = Size {
                    rows: a.rows.saturating_mul(b.rows),
                    columns: a.columns.saturating_mul(b.columns),
                };
                Ok((size, second_rank.or(first_rank)))
            }
        }
    }
}

impl Matrix<'_> {
    fn size(&self, adapter: &Adapter) -> Result<(Size, Option<usize>)> {
        match self {
            Self::Whole(key) => Ok((adapter.size(key)?, None)),
            Self::Product(product) => product.size(adapter).map(|(size, rank)| (size, Some(rank))),
        }
    }

    fn evaluate(&self, adapter: &Adapter) -> Result<Tensor> {
        match self {
            Self::Whole(key) => adapter.matrix(key),
            Self::Product(product) => product.evaluate(adapter),
        }
    }
}

impl Product<'_> {
    fn size(&self, adapter: &Adapter) -> Result<(Size, usize)> {
        let (a, b) = (adapter.size(self.a)?, adapter.size(self.b)?);
        // With a core, both factors but LoRA's upper one have their rank first.
        let (output, a_rank) =
            if self.core.is_some() && !self.a_is_upright { (a.columns, a.rows) } else { (a.rows, a.columns) };
        let mismatch = |key: &str| format!("'{key}' does not fit '{}': the ranks differ", self.a);
        let columns = match self.core {
            None => {
                ensure!(a_rank == b.rows, mismatch(self.b));
                b.columns
            }
            Some(core) => {
                let view = adapter.file.view(core).with_context(|| format!("'{core}' is missing"))?;
                let [n, m, kernel @ ..] = view.shape else {
                    bail!("'{core}' has shape {:?} where four dimensions are expected", view.shape)
                };
                ensure!((*n, *m) == (a_rank, b.rows), mismatch(core));
                b.columns.saturating_mul(kernel.iter().product())
            }
        };
        for (rank, key) in [(a_rank, self.a), (b.rows, self.b)] {
            ensure!(rank <= MAX_RANK, "'{key}' has rank {rank}, which is out of range (1 to {MAX_RANK})");
        }
        Ok((Size { rows: output, columns }, b.rows))
    }

    fn evaluate(&self, adapter: &Adapter) -> Result<Tensor> {
        let (a, b) = (adapter.matrix(self.a)?, adapter.matrix(self.b)?);
        let Some(core) = self.core else { return Ok(a.matmul(&b)?) };
        let a = if self.a_is_upright { a } else { a.t()?.contiguous()? };
        let core = adapter.matrix(core)?;
        let (output, (ranks, inputs)) = (a.dim(0)?, b.dims2()?);
        // [output, n] [n, m k] -> [output k, m] [m, input] -> [output, input, k]
        let taps = core.dim(1)? / ranks;
        let partial = a.matmul(&core)?.reshape((output, ranks, taps))?.transpose(1, 2)?.contiguous()?;
        let product = partial.reshape((output * taps, ranks))?.matmul(&b)?.reshape((output, taps, inputs))?;
        Ok(product.transpose(1, 2)?.contiguous()?.reshape((output, inputs * taps))?)
    }
}
