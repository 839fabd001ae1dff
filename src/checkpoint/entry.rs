//! One tensor as a file's header lists it, whatever the format.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

/// Bytes of the longest header: that of SD 1.5 has 150 kB, a vocabulary adds 2 MB. Parsed, it takes ten times as much.
pub const LONGEST: usize = 16 << 20;

/// What a header says of one tensor.
#[derive(Debug)]
pub struct Entry {
    /// U8 for values in blocks.
    pub dtype: Dtype,
    /// How GGUF packs values, if it does.
    pub blocks: Option<GgmlDType>,
    pub shape: Vec<usize>,
    /// Of the whole file.
    pub bytes: Range<usize>,
}
