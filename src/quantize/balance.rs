//! Equalization of a model's pairs: which factors its rows, columns and norms get, and weights with them applied.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::amplification::{MOST_AMPLIFIED, amplification};
use super::equalize::{Channels, Matrix, factors, weights_sizes};
use super::pairs::{Giver, PAIRS, PROMPT, Pair, blocks, layer_name};
use super::{GroupedWeight, Origin, Policy, QuantizedWeight, Weight, divide_columns};

/// A model's tensors as equalization sees them.
pub trait Tensors {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// What the tensor called `name` comes from, if it is there.
    fn origin(&self, name: &str) -> Option<Origin>;

    /// The values of a tensor; those of a vector have one column.
    ///
    /// # Errors
    /// When the tensor is missing or unusable.
    fn matrix(&self, name: &str) -> Result<Matrix>;

    /// The columns' factors of a rounded weight that has some.
    ///
    /// # Errors
    /// When they are unusable.
    fn columns(&self, name: &str) -> Result<Option<Vec<f32>>>;
}

type Factors = Arc<[f32]>;

/// Factors by canonical names, under which a network computes the same as without, but for the last bits; and what stays
/// float, because no factors help.
#[derive(Debug, Clone, Default)]
pub struct Balance {
    /// What the values of a vector, or the rows of a weight, are multiplied with.
    rows: HashMap<String, Factors>,
    /// What the columns of a weight are divided by.
    columns: HashMap<String, Factors>,
    /// What a layer multiplies its inputs with, because nobody before it does; by its weight.
    inputs: HashMap<String, Factors>,
    /// Weights that stay float, because no factors make their channels alike.
    kept: BTreeSet<String>,
}

impl Balance {
    /// The factors for whatever `policy` has computed in int8 of `tensors`: those that rounded weights have been rounded
    /// with, and for floats those that make channels alike.
    ///
    /// # Errors
    /// Names the tensor that can't be read.
    pub fn of(tensors: &dyn Tensors, policy: &Policy) -> Result<Self> {
        let mut balance = Self::default();
        for block in blocks(tensors.names()) {
            for pair in &PAIRS {
                balance.add(&Block { tensors, policy, name: block }, pair)?;
            }
        }
        Ok(balance)
    }

    fn add(&mut self, block: &Block<'_>, pair: &Pair) -> Result<()> {
        let readers: Vec<String> = pair.readers.iter().map(|reader| block.weight(reader)).collect();
        let factors: Factors = match block.remedy(pair, &readers)? {
            Remedy::None => return Ok(()),
            Remedy::Factors(factors) => factors.into(),
            Remedy::Floats { layer } => {
                self.kept.insert(block.weight(layer));
                self.kept.extend(readers);
                return Ok(());
            }
        };
        for (name, factors) in block.given(pair.giver, &factors) {
            self.rows.insert(name, factors);
        }
        for reader in readers {
            if pair.giver == Giver::Prompt {
                self.inputs.insert(reader.clone(), factors.clone());
            }
            self.columns.insert(reader, factors.clone());
        }
        Ok(())
    }

    /// What the columns of the weight called `name` are divided by before it is rounded.
    pub fn columns(&self, name: &str) -> Option<&[f32]> {
        self.columns.get(name).map(|factors| &**factors)
    }

    /// Whether the weight called `name` stays float: its channels have outliers that no factors undo.
    pub fn keeps(&self, name: &str) -> bool {
        self.kept.contains(name)
    }

    /// All of these, by name.
    pub fn kept(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(String::as_str)
    }

    /// What the layer of the weight called `name` has to multiply its inputs with.
    pub fn inputs(&self, name: &str) -> Option<&[f32]> {
        self.inputs.get(name).map(|factors| &**factors)
    }

    /// The weight called `name`, `[outputs, ..]`, with its factors applied, for int8 products if `int8` says so.
    ///
    /// # Errors
    /// When values are infinite or NaN, or not as many as there are factors.
    pub fn weight(&self, name: &str, stored: Weight, outputs: usize, int8: bool) -> Result<Weight> {
        let (rows, columns) = (self.rows.get(name), self.columns(name));
        let mut weight = match stored {
            Weight::Int8(weight) if int8 && weight.columns.as_deref() == columns => {
                Weight::Int8(QuantizedWeight { columns: None, ..weight })
            }
            Weight::Int4(weight) if int8 && weight.columns.as_deref() == columns => {
                Weight::Int4(GroupedWeight { columns: None, ..weight })
            }
            stored => {
                let mut values = stored.into_f32();
                if let Some(columns) = columns {
                    divide_columns(&mut values, columns)?;
                }
                if int8 {
                    Weight::Int8(QuantizedWeight::round(&values, outputs)?)
                } else {
                    Weight::Float(values)
                }
            }
        };
        if let Some(rows) = rows {
            multiply_rows(
                match &mut weight {
                    Weight::Float(values) => values,
                    Weight::Int8(weight) => &mut weight.scales,
                    Weight::Int4(weight) => &mut weight.scales,
                },
                rows,
            )?;
        }
        Ok(weight)
    }

    /// The vector called `name` with its factors applied.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn vector(&self, name: &str, mut values: Vec<f32>) -> Result<Vec<f32>> {
        if let Some(factors) = self.rows.get(name) {
            multiply_rows(&mut values, factors)?;
        }
        Ok(values)
    }
}

/// Multiplies weights, or their scales or biases, `[rows, ..]`, by the factors of their rows.
fn multiply_rows(values: &mut [f32], factors: &[f32]) -> Result<()> {
    let count = values.len();
    ensure!(
        !factors.is_empty() && count.is_multiple_of(factors.len()),
        "{} factors for the rows of {count} values",
        factors.len()
    );
    if count > 0 {
        for (row, factor) in values.chunks_exact_mut(count / factors.len()).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
    Ok(())
}

/// What makes the channels of a pair lose no more in int8 than others.
enum Remedy {
    None,
    /// Those of [`Balance`].
    Factors(Vec<f32>),
    /// No factors do: the readers stay float, and the layer that gives them their channels.
    Floats {
        layer: &'static str,
    },
}

/// One transformer block of a model.
struct Block<'a> {
    tensors: &'a dyn Tensors,
    policy: &'a Policy,
    name: &'a str,
}

impl Block<'_> {
    fn weight(&self, layer: &str) -> String {
        layer_name(self.name, layer) + ".weight"
    }

    fn bias(&self, layer: &str) -> String {
        layer_name(self.name, layer) + ".bias"
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.origin(name).is_some()
    }

    fn is_rounded(&self, name: &str) -> bool {
        self.tensors.origin(name).is_some_and(Origin::is_rounded)
    }

    /// What makes the channels of a pair alike, unless there are no such layers or none of them is computed in int8.
    fn remedy(&self, pair: &Pair, readers: &[String]) -> Result<Remedy> {
        let gives = match pair.giver {
            Giver::Norm(layer) | Giver::Rows { layer, .. } | Giver::Values { layer, .. } => {
                self.has(&self.weight(layer))
            }
            Giver::Prompt => true,
        };
        let computed = |name: &String| {
            let origin = self.tensors.origin(name);
            origin.is_some_and(|origin| self.policy.computes_int8(name, origin))
        };
        if !gives || !readers.iter().all(|reader| self.has(reader)) || !readers.iter().any(computed) {
            return Ok(Remedy::None);
        }
        // What has been rounded was rounded with factors of its own, which cost nothing more.
        if let Some(rounded) = readers.iter().find(|reader| self.is_rounded(reader)) {
            return Ok(self.tensors.columns(rounded)?.map_or(Remedy::None, Remedy::Factors));
        }
        let matrices = readers.iter().map(|reader| self.tensors.matrix(reader));
        let matrices = matrices.collect::<Result<Vec<_>>>()?;
        let width = matrices.first().map_or(0, |matrix| matrix.columns);
        let giver = match pair.giver {
            Giver::Rows { layer, reads } | Giver::Values { layer, reads } => {
                let matrix = self.tensors.matrix(&self.weight(layer))?;
                Some((layer, self.read_by(reads, matrix.columns)?, matrix))
            }
            Giver::Norm(_) | Giver::Prompt => None,
        };
        let channels = match (pair.giver, &giver) {
            (Giver::Norm(norm), _) => self.normed(norm)?,
            (Giver::Values { layer, .. }, Some((_, read, matrix))) => {
                self.through(layer, read, matrix)?.gated()
            }
            (Giver::Rows { layer, .. }, Some((_, read, matrix))) => self.through(layer, read, matrix)?,
            _ => self.read_by(PROMPT, width)?,
        };
        let inputs = channels.sizes(0..channels.means.len());
        // Shapes that fit nothing are told by who loads the layers.
        if matrices.iter().any(|matrix| matrix.columns != inputs.len()) {
            return Ok(Remedy::None);
        }
        let factors = factors(&inputs, &weights_sizes(&matrices, &inputs));
        if let (Giver::Rows { .. }, Some((layer, read, matrix))) = (pair.giver, &giver)
            && !self.is_rounded(&self.weight(layer))
        {
            let read = read.sizes(0..matrix.columns);
            if matrices.iter().any(|reader| amplification(&read, matrix, &factors, reader) > MOST_AMPLIFIED) {
                return Ok(Remedy::Floats { layer });
            }
        }
        Ok(Remedy::Factors(factors))
    }

    /// What the norm called `norm` gives.
    fn normed(&self, norm: &str) -> Result<Channels> {
        let vector = |name: String| Ok::<_, anyhow::Error>(self.tensors.matrix(&name)?.values);
        let (gain, offset) = (vector(self.weight(norm))?, vector(self.bias(norm))?);
        Ok(if gain.len() == offset.len() { Channels::normed(&gain, offset) } else { Channels::alike(0) })
    }

    /// What a layer of `width` inputs reads behind `norm`, if that is there.
    fn read_by(&self, norm: &str, width: usize) -> Result<Channels> {
        let known = self.has(&self.weight(norm)) && self.has(&self.bias(norm));
        let channels = if known { self.normed(norm)? } else { Channels::alike(width) };
        Ok(if channels.means.len() == width { channels } else { Channels::alike(width) })
    }

    /// What `layer` gives, whose weights are `matrix`, of what it reads.
    fn through(&self, layer: &str, read: &Channels, matrix: &Matrix) -> Result<Channels> {
        let bias = self.bias(layer);
        let bias = if self.has(&bias) { Some(self.tensors.matrix(&bias)?.values) } else { None };
        Ok(read.through(matrix, bias.as_deref()))
    }

    /// The tensors that are to give channels multiplied by `factors`, and what their rows are multiplied with.
    fn given(&self, giver: Giver, factors: &Factors) -> Vec<(String, Factors)> {
        let (layer, factors) = match giver {
            Giver::Prompt => return Vec::new(),
            Giver::Norm(layer) | Giver::Rows { layer, .. } => (layer, factors.clone()),
            // The gates stay.
            Giver::Values { layer, .. } => {
                let ones = std::iter::repeat_n(&1.0, factors.len());
                (layer, factors.iter().chain(ones).copied().collect())
            }
        };
        vec![(self.weight(layer), factors.clone()), (self.bias(layer), factors)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_applied_to_floats_and_to_what_was_rounded() {
        let factors = |values: &[f32]| Factors::from(values);
        let balance = Balance {
            rows: HashMap::from([
                ("a.weight".to_owned(), factors(&[2.0, 1.0])),
                ("a.bias".to_owned(), factors(&[2.0, 1.0])),
            ]),
            columns: HashMap::from([("a.weight".to_owned(), factors(&[0.5, 4.0, 1.0]))]),
            ..Balance::default()
        };
        let values = vec![1.0, 8.0, 2.0, -1.0, 0.0, 4.0];
        let floats = |weight: Weight| weight.into_f32();
        let expected = [4.0, 4.0, 4.0, -2.0, 0.0, 4.0];
        let apply = |stored, int8| balance.weight("a.weight", stored, 2, int8).unwrap();
        assert_eq!(floats(apply(Weight::Float(values.clone()), false)), expected);
        let near =
            |got: Vec<f32>| got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.2);
        assert!(near(floats(apply(Weight::Float(values.clone()), true))));

        // The integers stay as they are where the file's factors are those of the pair.
        let own = QuantizedWeight::round_with_columns(&values, 2, &[0.5, 4.0, 1.0]).unwrap();
        let Weight::Int8(applied) = apply(Weight::Int8(own.clone()), true) else { panic!("int8") };
        assert_eq!((&applied.values, &applied.columns), (&own.values, &None));
        assert_eq!(applied.scales, [2.0 * own.scales[0], own.scales[1]]);
        // Others' are rounded again.
        let plain = QuantizedWeight::round(&values, 2).unwrap();
        assert!(near(floats(apply(Weight::Int8(plain), true))));
        assert!(near(floats(apply(Weight::Int8(own), false))));

        assert_eq!(balance.vector("a.bias", vec![1.0, 1.0]).unwrap(), [2.0, 1.0]);
        assert_eq!(balance.vector("b.bias", vec![1.0, 1.0]).unwrap(), [1.0, 1.0]);
        assert!(balance.vector("a.bias", vec![1.0; 3]).is_err());
        assert!(balance.weight("a.weight", Weight::Float(vec![1.0; 4]), 2, true).is_err());
    }
}
