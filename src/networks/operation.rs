//! One layer of a network, as plain data: what it reads, through which norm, and what is fused with it.

use crate::layers::{ConvShape, Function};

/// What a layer gives or a run is given: a feature map `[batch, height, width, channels]`, or one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(pub(super) usize);

/// A value as a layer reads it.
#[derive(Debug, Clone)]
pub struct Read {
    pub value: Value,
    pub through: Through,
}

/// What is done to a value on its way into a product.
#[derive(Debug, Clone)]
pub enum Through {
    Nothing,
    GroupNorm { name: String, groups: usize, eps: f64, silu: bool },
    LayerNorm { name: String, eps: f64 },
    Activation(Function),
}

impl From<Value> for Read {
    fn from(value: Value) -> Self {
        Self { value, through: Through::Nothing }
    }
}

/// `function(value)`.
pub fn activated(function: Function, value: Value) -> Read {
    Read { value, through: Through::Activation(function) }
}

/// `SiLU(value)`.
pub fn silu(value: Value) -> Read {
    activated(Function::Silu, value)
}

/// `LayerNorm(value)`.
pub fn layer_norm(name: impl Into<String>, eps: f64, value: Value) -> Read {
    Read { value, through: Through::LayerNorm { name: name.into(), eps } }
}

/// The group norms of one network: all but their names.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    pub count: usize,
    pub eps: f64,
}

impl Groups {
    /// `GroupNorm(value)`.
    pub fn norm(self, name: impl Into<String>, value: Value) -> Read {
        self.read(name.into(), value, false)
    }

    /// `SiLU(GroupNorm(value))`.
    pub fn norm_silu(self, name: impl Into<String>, value: Value) -> Read {
        self.read(name.into(), value, true)
    }

    fn read(self, name: String, value: Value, silu: bool) -> Read {
        let Self { count: groups, eps } = self;
        Read { value, through: Through::GroupNorm { name, groups, eps, silu } }
    }
}

/// The size a map is enlarged to before a convolution, by nearest neighbors.
#[derive(Debug, Clone, Copy)]
pub enum Enlarge {
    Double,
    /// Another map's: not always double, since an odd size is rounded up on the way down.
    LikeMap(Value),
}

/// A convolution and what is fused with it: `ReLU(conv(enlarge(read)) + shift + residual)`.
#[derive(Debug, Clone)]
pub struct Conv {
    /// Of its parameters, below the component.
    pub name: String,
    pub shape: ConvShape,
    pub read: Read,
    pub enlarge: Option<Enlarge>,
    /// A row added to every pixel.
    pub shift: Option<Value>,
    pub residual: Option<Value>,
    pub relu: bool,
}

impl Conv {
    pub fn new(name: impl Into<String>, shape: ConvShape, read: impl Into<Read>) -> Self {
        let (name, read) = (name.into(), read.into());
        Self { name, shape, read, enlarge: None, shift: None, residual: None, relu: false }
    }

    /// Whether the output has another size than the input.
    pub fn resamples(&self) -> bool {
        self.enlarge.is_some() || self.shape.stride > 1
    }
}

/// Linear layers of equal size that read the same rows, side by side, plus a residual.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Of their parameters, below the component.
    pub names: Vec<String>,
    /// Of each.
    pub outputs: usize,
    pub bias: bool,
    /// `value * gelu(gate)`, where a single layer has values and gates side by side.
    pub gated: bool,
    pub read: Read,
    pub residual: Option<Value>,
}

impl Linear {
    pub fn new(name: impl Into<String>, outputs: usize, read: impl Into<Read>) -> Self {
        let (names, read) = (vec![name.into()], read.into());
        Self { names, outputs, bias: true, gated: false, read, residual: None }
    }

    /// Several at once, called `name.part`.
    pub fn stacked(name: &str, parts: &[&str], outputs: usize, read: impl Into<Read>) -> Self {
        let names = parts.iter().map(|part| format!("{name}.{part}")).collect();
        Self { names, ..Self::new("", outputs, read) }
    }

    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// A map that may be added to from outside, as a ControlNet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The skip of this number, in the order in which they are saved.
    Skip(usize),
    /// What comes out of the middle.
    Middle,
}

/// One layer.
#[derive(Debug, Clone)]
pub enum Operation {
    /// What a run is given: a map or a row of this many channels.
    Input {
        channels: usize,
    },
    Conv(Conv),
    Linear(Linear),
    /// Attention over all pixels; queries, keys and values are a third of the channels each.
    SelfAttention {
        stacked: Value,
        heads: usize,
        /// Whether none sees a later one: pixels in a row are tokens.
        causal: bool,
    },
    /// Attention to the prompt, in the rows of this index.
    CrossAttention {
        query: Value,
        heads: usize,
        prompt: usize,
    },
    /// A map and a skip, side by side in the channels.
    Join {
        map: Value,
        skip: Value,
        port: Port,
    },
    /// A map to which something may be added from outside.
    Receive {
        map: Value,
        port: Port,
    },
}

impl Operation {
    /// Of its parameters, below the component; none where it has none.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Conv(conv) => std::slice::from_ref(&conv.name),
            Self::Linear(linear) => &linear.names,
            _ => &[],
        }
    }

    /// All values it takes, each once.
    pub fn operands(&self) -> Vec<Value> {
        let mut operands = match self {
            Self::Input { .. } => vec![],
            Self::Conv(conv) => {
                let like = match conv.enlarge {
                    Some(Enlarge::LikeMap(map)) => Some(map),
                    _ => None,
                };
                [Some(conv.read.value), conv.shift, conv.residual, like].into_iter().flatten().collect()
            }
            Self::Linear(linear) => {
                [Some(linear.read.value), linear.residual].into_iter().flatten().collect()
            }
            Self::SelfAttention { stacked, .. } => vec![*stacked],
            Self::CrossAttention { query, .. } => vec![*query],
            Self::Join { map, skip, .. } => vec![*map, *skip],
            Self::Receive { map, .. } => vec![*map],
        };
        operands.sort_unstable();
        operands.dedup();
        operands
    }

    /// The maps of which it takes each picture's with the same picture's of the others.
    pub fn by_picture(&self) -> Vec<Value> {
        match self {
            Self::Input { .. } => vec![],
            Self::Conv(Conv { read, residual, .. }) | Self::Linear(Linear { read, residual, .. }) => {
                [Some(read.value), *residual].into_iter().flatten().collect()
            }
            Self::SelfAttention { stacked: map, .. }
            | Self::CrossAttention { query: map, .. }
            | Self::Receive { map, .. } => vec![*map],
            Self::Join { map, skip, .. } => vec![*map, *skip],
        }
    }

    /// How it reads its input, where it is a product.
    pub fn read(&self) -> Option<&Read> {
        match self {
            Self::Conv(conv) => Some(&conv.read),
            Self::Linear(linear) => Some(&linear.read),
            _ => None,
        }
    }
}

/// Keys and values of the prompt for one transformer: two linear layers side by side, without bias.
#[derive(Debug, Clone)]
pub struct PromptRows {
    /// Of the two layers' parameters.
    pub names: [String; 2],
    /// Channels of the text embeddings.
    pub inputs: usize,
    /// Channels of the keys, and of the values.
    pub outputs: usize,
}
