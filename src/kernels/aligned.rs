//! Buffers that start on a cache line, for packed weights and accumulators; ordinary vectors do elsewhere.

/// A cache line, which is also the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Element types for which any bytes are a value and zero bytes are zero.
///
/// # Safety
/// Implementors must be plain numbers of at most 64 bytes whose size divides 64.
pub(super) unsafe trait Number: Copy + Default {}

// SAFETY: a plain number of 4 bytes.
unsafe impl Number for f32 {}
// SAFETY: a plain number of 4 bytes.
unsafe impl Number for i32 {}
// SAFETY: a plain number of 2 bytes.
unsafe impl Number for i16 {}
// SAFETY: a plain number of 1 byte.
unsafe impl Number for i8 {}
// SAFETY: a plain number of 1 byte.
unsafe impl Number for u8 {}

/// A fixed-length buffer of numbers aligned to 64 bytes.
#[derive(Clone)]
pub(super) struct AlignedBuf<T> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Number> AlignedBuf<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = vec![Line([0; 64]); (len * size_of::<T>()).div_ceil(64)];
        Self { lines, len, element: std::marker::PhantomData }
    }

    /// Grows to at least `len` elements; the contents are then unspecified numbers.
    pub fn reserve_len(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeros(len);
        }
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the lines hold at least `len` elements (see `zeros`), all bytes are initialised and any
        // bytes are a `T` (see `Number`), and 64-byte alignment suffices for it.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
