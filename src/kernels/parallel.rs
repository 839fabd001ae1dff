//! Work shared between threads: disjoint parts of one output, and scratch memory that a thread keeps.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::aligned::AlignedBuf;

/// A mutable slice of which threads write disjoint parts.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers promise that parts in use at once do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as a `&mut [T]`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Over room for elements, none of which may be read before it has been written.
    pub fn over_room(room: &'a mut [MaybeUninit<T>]) -> Self {
        Self { start: room.as_mut_ptr().cast(), len: room.len(), slice: PhantomData }
    }

    /// The same for some of its time.
    pub fn shared(&self) -> Disjoint<'_, T> {
        Disjoint { start: self.start, len: self.len, slice: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is that of `len` elements from `start`.
    pub fn is(&self, start: *const T, len: usize) -> bool {
        self.start.cast_const() == start && self.len == len
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    ///
    /// # Panics
    /// If `range` exceeds the slice.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // that is the purpose; disjointness is the caller's promise
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice, which outlives `self`; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Where element `at` lies, or would if there were as many.
    #[inline(always)]
    pub fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
    }

    /// The first of `rows` rows of `width` elements, `pitch` apart, from `start`; all may be read and written.
    ///
    /// # Safety
    /// No two parts or rows that live at the same time may overlap.
    ///
    /// # Panics
    /// If the rows exceed the slice.
    #[inline(always)]
    pub unsafe fn rows(&self, start: usize, rows: usize, pitch: usize, width: usize) -> *mut T {
        assert!(rows > 0 && start + (rows - 1) * pitch + width <= self.len);
        // SAFETY: inside the slice.
        unsafe { self.start.add(start) }
    }
}

/// Pieces of each thread's share at least: rayon alone may leave a share in one piece, which a phone's slow core would
/// still be at long after the fast ones are done.
const PIECES: usize = 16;

/// Runs `work` for each index below `count` on the current rayon pool, neighbours mostly on one thread.
pub(super) fn for_each_index(count: usize, work: impl Fn(usize) + Send + Sync) {
    if count == 1 {
        work(0);
    } else {
        let piece = (count / (PIECES * rayon::current_num_threads())).max(1);
        (0..count).into_par_iter().with_max_len(piece).for_each(work);
    }
}

/// Scratch memory of one thread.
pub(super) struct Scratch {
    pub floats: AlignedBuf<f32>,
    pub words: AlignedBuf<i16>,
    pub bytes: AlignedBuf<i8>,
    pub indices: Vec<u32>,
}

/// Lends the thread's scratch with at least `floats` f32 and `indices` u32, of unspecified contents; who needs
/// words or bytes reserves them.
///
/// # Panics
/// If used within itself: `work` must not lend again, nor wait for other rayon work.
pub(super) fn with_scratch<R>(floats: usize, indices: usize, work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
            floats: AlignedBuf::zeros(0),
            words: AlignedBuf::zeros(0),
            bytes: AlignedBuf::zeros(0),
            indices: Vec::new(),
        });
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.floats.reserve_len(floats);
        if scratch.indices.len() < indices {
            scratch.indices.resize(indices, 0);
        }
        work(scratch)
    })
}

thread_local! {
    /// The rounded inputs of the last product on this thread: fresh memory costs as much as rounding.
    static INPUTS: Cell<Option<AlignedBuf<i16>>> = const { Cell::new(None) };
}

/// At least `len` words of unspecified contents for all threads' work, to be given back with [`keep_words`].
pub(super) fn take_words(len: usize) -> AlignedBuf<i16> {
    let mut words = INPUTS.take().unwrap_or_else(|| AlignedBuf::zeros(0));
    words.reserve_len(len);
    words
}

pub(super) fn keep_words(words: AlignedBuf<i16>) {
    INPUTS.set(Some(words));
}
