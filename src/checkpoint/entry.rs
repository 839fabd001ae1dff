//! One tensor as a file's header lists it, whatever the format.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

/// Bytes of the longest header: that of SD 1.5 has 150 kB, a vocabulary adds 2 MB. Parsed, it takes ten times as much.
pub const LONGEST: usize = 16 << 20;

/// What a header says of one tensor.
#[derive(Debug)]
pub struct Entry {
    /// U8 for packed values.
    pub dtype: Dtype,
    pub packed: Option<Packed>,
    pub shape: Vec<usize>,
    /// Of the whole file.
    pub bytes: Range<usize>,
}

/// How values lie in bytes that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// In GGUF's blocks.
    Blocks(GgmlDType),
    /// Of four bits in rows of whole bytes, with scales elsewhere: [`crate::quantize::grouped`].
    Nibbles,
}
