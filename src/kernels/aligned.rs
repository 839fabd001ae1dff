//! Buffers that start on a cache line, for packed weights and accumulators; ordinary vectors do elsewhere.

/// Bytes of a cache line, which is also the widest vector.
pub(super) const LINE: usize = 64;

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
// SAFETY: a plain number of 2 bytes.
unsafe impl Number for u16 {}
// SAFETY: a plain number of 1 byte.
unsafe impl Number for i8 {}
// SAFETY: a plain number of 1 byte.
unsafe impl Number for u8 {}

/// A fixed-length buffer of numbers aligned to 64 bytes.
pub(super) struct AlignedBuf<T> {
    /// Longer by a line, so that the buffer can begin with one: zeros of this alignment come from the system, which
    /// has them without writing any.
    bytes: Box<[u8]>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Number> AlignedBuf<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let bytes = vec![0; len * size_of::<T>() + LINE].into_boxed_slice();
        Self { bytes, len, element: std::marker::PhantomData }
    }

    /// Grows to at least `len` elements; the contents are then unspecified numbers.
    pub fn reserve_len(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeros(len);
        }
    }

    /// The first byte that begins a line.
    fn start(&self) -> usize {
        self.bytes.as_ptr().align_offset(LINE)
    }

    pub fn as_slice(&self) -> &[T] {
        let bytes = &self.bytes[self.start()..][..self.len * size_of::<T>()];
        // SAFETY: the bytes are `len` elements that begin with a line, which is alignment enough; all are initialized,
        // and any are a `T` (see `Number`).
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let start = self.start();
        let bytes = &mut self.bytes[start..][..self.len * size_of::<T>()];
        // SAFETY: as in `as_slice`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), self.len) }
    }
}

impl<T: Number> Clone for AlignedBuf<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}
