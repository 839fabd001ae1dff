//! Numbers that are only read: packed here, or lent by whoever keeps them packed; what they mean is the products' business.

use std::ops::Range;
use std::sync::Arc;

use super::aligned::{AlignedBuf, LINE, Number};

/// Who keeps bytes that others read, e.g. a file in memory.
pub trait Lender: Send + Sync {
    /// All bytes, at the same place as long as the lender lives.
    fn bytes(&self) -> &[u8];

    /// Hears that somebody has no more use for some of them.
    fn returned(&self, range: &Range<usize>);
}

/// Bytes that belong to somebody else.
pub struct LentBytes {
    lender: Arc<dyn Lender>,
    range: Range<usize>,
}

impl LentBytes {
    /// # Panics
    /// If the lender has no such bytes.
    pub fn new(lender: Arc<dyn Lender>, range: Range<usize>) -> Self {
        assert!(lender.bytes().get(range.clone()).is_some(), "bytes {range:?} of {}", lender.bytes().len());
        Self { lender, range }
    }

    fn bytes(&self) -> &[u8] {
        &self.lender.bytes()[self.range.clone()]
    }
}

impl Clone for LentBytes {
    fn clone(&self) -> Self {
        Self { lender: self.lender.clone(), range: self.range.clone() }
    }
}

impl Drop for LentBytes {
    fn drop(&mut self) {
        self.lender.returned(&self.range);
    }
}

/// Bytes of a lent part that holds so many: whole cache lines, so that the next part begins with one.
pub const fn lent_len(bytes: usize) -> usize {
    bytes.next_multiple_of(LINE)
}

/// A fixed number of numbers.
#[derive(Clone)]
pub(super) enum ReadOnly<T: Number> {
    Aligned(AlignedBuf<T>),
    Plain(Vec<T>),
    Lent { bytes: LentBytes, len: usize },
}

impl<T: Number> ReadOnly<T> {
    /// The `len` numbers that `bytes` are, if they are as many and begin with a cache line.
    pub fn lent(bytes: LentBytes, len: usize) -> Option<Self> {
        let found = bytes.bytes();
        let fits = found.len() == lent_len(len * size_of::<T>()) && found.as_ptr().align_offset(LINE) == 0;
        fits.then_some(Self::Lent { bytes, len })
    }

    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Aligned(numbers) => numbers.as_slice(),
            Self::Plain(numbers) => numbers,
            Self::Lent { bytes, len } => {
                let bytes = &bytes.bytes()[..len * size_of::<T>()];
                // SAFETY: the bytes are `len` elements; `lent` found them to begin with a line, which is alignment
                // enough, and a lender's bytes stay where they are; any are a `T` (see `Number`).
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), *len) }
            }
        }
    }

    /// The bytes that the numbers are.
    pub fn bytes(&self) -> &[u8] {
        let numbers = self.as_slice();
        // SAFETY: numbers have no bytes that are not initialized, and bytes need no alignment.
        unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
    }
}

impl<T: Number> From<AlignedBuf<T>> for ReadOnly<T> {
    fn from(numbers: AlignedBuf<T>) -> Self {
        Self::Aligned(numbers)
    }
}

impl<T: Number> From<Vec<T>> for ReadOnly<T> {
    fn from(numbers: Vec<T>) -> Self {
        Self::Plain(numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what was returned.
    struct Keeper(AlignedBuf<u8>, Mutex<Vec<Range<usize>>>);

    impl Lender for Keeper {
        fn bytes(&self) -> &[u8] {
            self.0.as_slice()
        }

        fn returned(&self, range: &Range<usize>) {
            self.1.lock().unwrap().push(range.clone());
        }
    }

    #[test]
    fn numbers_come_back_from_their_bytes() {
        let numbers: ReadOnly<f32> = vec![1.5, -2.0, 3.25].into();
        let mut bytes = AlignedBuf::zeros(3 * LINE);
        bytes.as_mut_slice()[LINE..][..12].copy_from_slice(numbers.bytes());
        let keeper = Arc::new(Keeper(bytes, Mutex::default()));
        let lend = |range: Range<usize>| LentBytes::new(keeper.clone(), range);
        let lent = ReadOnly::<f32>::lent(lend(LINE..2 * LINE), 3).unwrap();
        assert_eq!(lent.clone().as_slice(), numbers.as_slice());
        assert_eq!(lent.bytes(), numbers.bytes());
        // Too few, too many, and none that begin with a line.
        assert!(ReadOnly::<f32>::lent(lend(LINE..2 * LINE), 17).is_none());
        assert!(ReadOnly::<f32>::lent(lend(LINE..3 * LINE), 3).is_none());
        assert!(ReadOnly::<f32>::lent(lend(32..32 + LINE), 3).is_none());
        keeper.1.lock().unwrap().clear();
        drop(lent);
        assert!(keeper.1.lock().unwrap().iter().eq(std::iter::once(&(LINE..2 * LINE))));
    }
}
