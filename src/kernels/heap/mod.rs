//! Where the program's memory comes from: blocks of megabytes lie in huge pages and are kept for the next of their size,
//! or give their pages to one of another size.
//!
//! A step makes and frees hundreds of maps between weights that stay. The system's heap either puts them all in one
//! place, whose holes come to more than what is in use, or asks the kernel for each, which then clears it page by page.

mod pages;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use pages::{Block, HUGE, PIECES, map, move_pages, unmap};

/// Smaller blocks are the system heap's.
const LARGE: usize = 1 << 20;
/// Bytes of free blocks that are kept at most, and how many.
const MOST_KEPT: usize = 400 << 20;
const SLOTS: usize = 64;

/// The program's allocator. Free blocks are kept as long as they fit below the most that was ever in use at once, so
/// that they never add to the peak.
pub struct Heap(Mutex<Blocks>);

struct Blocks {
    /// Oldest first, then vacant slots.
    kept: [Option<Block>; SLOTS],
    kept_bytes: usize,
    /// Those that are lent for less than their length, in any order.
    longer: [Option<Block>; SLOTS],
    lent_bytes: usize,
    most_lent: usize,
}

impl Heap {
    #[allow(clippy::new_without_default, reason = "a static can't call a trait's function")]
    pub const fn new() -> Self {
        Self(Mutex::new(Blocks {
            kept: [None; SLOTS],
            kept_bytes: 0,
            longer: [None; SLOTS],
            lent_bytes: 0,
            most_lent: 0,
        }))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Blocks) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A block for `size` bytes, of zeros if it is fresh.
    fn lend(&self, size: usize) -> Option<(Block, Fresh)> {
        let len = class(size);
        if let Some(block) = self.with(|blocks| blocks.reuse(len)) {
            return Some((block, Fresh(false)));
        }
        // Others go on while the kernel works.
        let block = map(len, size)?;
        let spare = self.with(|blocks| blocks.take_pages(len));
        let fresh = spare.iter().all(Option::is_none);
        // SAFETY: what is kept is nobody's, and no more of it was taken than the fresh block has room for.
        unsafe { move_pages(spare, block)? };
        self.with(|blocks| blocks.lent(len));
        Some((block, Fresh(fresh)))
    }
}

struct Fresh(bool);

/// Whether a block is this heap's own rather than the system's, which its layout decides.
fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= 4096
}

/// The length of the block for `size` bytes, of eight for each power of two.
fn class(size: usize) -> usize {
    size.next_multiple_of((1 << size.ilog2()) / 8)
}

impl Blocks {
    /// The shortest block of this length or up to twice as long; of equals the one that was freed last: it is the
    /// likeliest to be in a cache.
    fn reuse(&mut self, len: usize) -> Option<Block> {
        let vacant = self.longer.iter().position(Option::is_none);
        let most = if vacant.is_some() { 2 * len } else { len };
        let kept = self.kept.iter().enumerate().rev();
        let fits = kept.filter_map(|(at, block)| block.map(|block| (at, block)));
        let fits = fits.filter(|(_, block)| (len..=most).contains(&block.len));
        let (at, block) = fits.min_by_key(|(_, block)| block.len)?;
        self.kept[at] = None;
        self.kept[at..].rotate_left(1);
        if block.len > len {
            self.longer[vacant?] = Some(block);
        }
        self.kept_bytes -= block.len;
        self.lent(block.len);
        Some(block)
    }

    /// Huge pages of blocks that are too short or too long for one of `len` bytes, for its beginning: the oldest first.
    /// What is left of a block is kept.
    fn take_pages(&mut self, len: usize) -> [Option<Block>; PIECES] {
        let mut pieces = [None; PIECES];
        let mut wanted = len / HUGE * HUGE;
        let mut at = 0;
        for piece in &mut pieces {
            let suits = |block: &Option<Block>| block.is_some_and(|block| block.huge_pages() > 0);
            let Some(found) = self.kept[at..].iter().position(suits).filter(|_| wanted > 0) else { break };
            at += found;
            let Some(block) = self.kept[at] else { break };
            let taken = Block { len: (block.huge_pages() * HUGE).min(wanted), ..block };
            wanted -= taken.len;
            self.kept_bytes -= taken.len;
            *piece = Some(taken);
            let rest = Block { start: block.after(taken.len), len: block.len - taken.len };
            if rest.len >= LARGE {
                self.kept[at] = Some(rest);
                at += 1;
            } else {
                self.kept[at] = None;
                self.kept[at..].rotate_left(1);
                self.kept_bytes -= rest.len;
                // SAFETY: a free block's last pages.
                unsafe { unmap(rest) };
            }
        }
        pieces
    }

    fn lent(&mut self, len: usize) {
        self.lent_bytes += len;
        self.most_lent = self.most_lent.max(self.lent_bytes);
        self.trim();
    }

    /// Takes back the block from `start`, which was lent as one of `len` bytes.
    fn take_back(&mut self, start: NonNull<u8>, len: usize) {
        let longer = self.longer.iter_mut().find(|block| block.is_some_and(|block| block.start == start));
        let block = longer.and_then(Option::take).unwrap_or(Block { start, len });
        if self.kept[SLOTS - 1].is_some() {
            self.unmap_oldest();
        }
        if let Some(vacant) = self.kept.iter().position(Option::is_none) {
            self.kept[vacant] = Some(block);
        }
        self.kept_bytes += block.len;
        self.lent_bytes -= block.len;
        self.trim();
    }

    fn trim(&mut self) {
        while self.kept_bytes > MOST_KEPT.min(self.most_lent - self.lent_bytes) {
            self.unmap_oldest();
        }
    }

    fn unmap_oldest(&mut self) {
        if let Some(block) = self.kept[0].take() {
            self.kept.rotate_left(1);
            self.kept_bytes -= block.len;
            // SAFETY: a free block.
            unsafe { unmap(block) };
        }
    }
}

// SAFETY: blocks are as long as asked for or longer, aligned to pages, and lent to one user at a time; which of the two
// heaps a block is from follows from its layout, which is the same when it is freed. Nothing here panics or allocates.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        self.lend(layout.size()).map_or(ptr::null_mut(), |(block, _)| block.start.as_ptr())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let Some((block, fresh)) = self.lend(layout.size()) else { return ptr::null_mut() };
        if !fresh.0 {
            // SAFETY: the block is at least as long, and nobody else's.
            unsafe { block.start.as_ptr().write_bytes(0, layout.size()) };
        }
        block.start.as_ptr()
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: the caller's promise; the block is the system's.
            return unsafe { System.dealloc(start, layout) };
        }
        if let Some(start) = NonNull::new(start) {
            self.with(|blocks| blocks.take_back(start, class(layout.size())));
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: `size` is not zero and, rounded up to the alignment, no overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: the caller's promise; the block is the system's and stays so.
            (false, false) => unsafe { System.realloc(start, layout, size) },
            (true, true) if class(layout.size()) == class(size) => start,
            _ => {
                // SAFETY: the size is not zero.
                let new = unsafe { self.alloc(wanted) };
                if !new.is_null() {
                    // SAFETY: two blocks, each at least as long as what is copied; the old one is freed once.
                    unsafe {
                        ptr::copy_nonoverlapping(start, new, layout.size().min(size));
                        self.dealloc(start, layout);
                    }
                }
                new
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    /// What the program would do with a block: each of its bytes is its own.
    fn fill(start: *mut u8, size: usize, value: u8) {
        // SAFETY: the tests pass blocks of this size.
        unsafe { start.write_bytes(value, size) };
    }

    fn is_filled(start: *mut u8, size: usize, value: u8) -> bool {
        // SAFETY: as in `fill`, which has been called or was not needed.
        unsafe { std::slice::from_raw_parts(start, size) }.iter().all(|&byte| byte == value)
    }

    /// Writes into each page of a block where the page lies.
    fn mark(start: *mut u8, size: usize) {
        for at in (0..size - 8).step_by(4096) {
            let page = start.wrapping_add(at).cast::<usize>();
            // SAFETY: as in `fill`.
            unsafe { page.write(page.addr() ^ size) };
        }
    }

    fn is_marked(start: *mut u8, size: usize) -> bool {
        (0..size - 8).step_by(4096).all(|at| {
            let page = start.wrapping_add(at).cast::<usize>();
            // SAFETY: as in `fill`.
            unsafe { page.read() == page.addr() ^ size }
        })
    }

    #[test]
    fn blocks_are_long_enough_and_classes_few() {
        for size in [LARGE, LARGE + 1, 3 << 20, (3 << 20) + 77, 100_000_001] {
            let len = class(size);
            assert!(len >= size && len <= size + size / 8 && len.is_multiple_of(64 << 10), "{size}: {len}");
            assert_eq!(class(len), len);
        }
    }

    #[test]
    fn a_block_is_reused_and_zeroed_where_zeros_are_asked_for() {
        let heap = Heap::new();
        let layout = layout(5 << 20);
        // SAFETY: each block is used within its size and freed once.
        unsafe {
            let first = heap.alloc_zeroed(layout);
            assert!(is_filled(first, layout.size(), 0) && first.align_offset(HUGE) == 0);
            fill(first, layout.size(), 7);
            heap.dealloc(first, layout);
            let second = heap.alloc(layout);
            assert_eq!(second, first);
            assert!(is_filled(second, layout.size(), 7));
            heap.dealloc(second, layout);
            let third = heap.alloc_zeroed(layout);
            assert_eq!(third, first);
            assert!(is_filled(third, layout.size(), 0));
            heap.dealloc(third, layout);
        }
    }

    #[test]
    fn contents_survive_growing_and_shrinking_between_both_heaps() {
        let heap = Heap::new();
        // SAFETY: each block is used within its size, and the last one freed.
        unsafe {
            let mut size = 1000;
            let mut start = heap.alloc(layout(size));
            fill(start, 1000, 3);
            for next in [2000, LARGE, LARGE + 1, 9 << 20, LARGE, 1000] {
                start = heap.realloc(start, layout(size), next);
                size = next;
                assert!(is_filled(start, 1000, 3), "{size}");
                fill(start, size, 3);
            }
            heap.dealloc(start, layout(size));
        }
    }

    #[test]
    fn pages_of_kept_blocks_become_a_longer_one() {
        let heap = Heap::new();
        let (first, second, both) = (layout(6 << 20), layout(5 << 20), layout(11 << 20));
        // SAFETY: each block is used within its size and freed once.
        unsafe {
            let blocks = [heap.alloc(first), heap.alloc(second)];
            fill(blocks[0], first.size(), 1);
            fill(blocks[1], second.size(), 2);
            heap.dealloc(blocks[0], first);
            heap.dealloc(blocks[1], second);
            // The second's last megabyte is no huge page: it is kept, and fresh memory takes its place.
            let joined = heap.alloc(both);
            assert!(is_filled(joined, 6 << 20, 1) && is_filled(joined.add(6 << 20), 4 << 20, 2));
            assert!(is_filled(joined.add(10 << 20), 1 << 20, 0));
            heap.with(|blocks| assert_eq!((blocks.kept_bytes, blocks.lent_bytes), (0, class(11 << 20))));
            fill(joined, both.size(), 3);
            heap.dealloc(joined, both);
            let zeroed = heap.alloc_zeroed(first);
            assert!(is_filled(zeroed, first.size(), 0));
            heap.dealloc(zeroed, first);
        }
    }

    #[test]
    fn a_longer_block_gives_pages_and_keeps_the_rest() {
        let heap = Heap::new();
        let (long, short) = (layout(14 << 20), layout(4 << 20));
        // SAFETY: each block is used within its size and freed once.
        unsafe {
            let block = heap.alloc(long);
            fill(block, long.size(), 5);
            heap.dealloc(block, long);
            let part = heap.alloc(short);
            assert!(is_filled(part, short.size(), 5) && part != block);
            heap.with(|blocks| assert_eq!((blocks.kept_bytes, blocks.lent_bytes), (10 << 20, 4 << 20)));
            let rest = heap.alloc(layout(10 << 20));
            assert_eq!(rest, block.add(4 << 20));
            assert!(is_filled(rest, 10 << 20, 5));
            heap.dealloc(rest, layout(10 << 20));
            heap.dealloc(part, short);
        }
    }

    #[test]
    fn what_is_kept_never_adds_to_the_most_in_use() {
        let heap = Heap::new();
        let mut random = Random::new(60);
        let (mut held, mut most): (Vec<(*mut u8, usize)>, usize) = (Vec::new(), 0);
        for _ in 0..3000 {
            if held.is_empty() || random.size(0, 1) == 0 && held.len() < 40 {
                let size = random.size(LARGE, 9 << 20);
                // SAFETY: freed below.
                let start = unsafe { heap.alloc(layout(size)) };
                mark(start, size);
                held.push((start, size));
            } else {
                let (start, size) = held.swap_remove(random.size(0, held.len() - 1));
                assert!(is_marked(start, size));
                // SAFETY: it comes from this heap and is freed once.
                unsafe { heap.dealloc(start, layout(size)) };
            }
            heap.with(|blocks| {
                let sum =
                    |blocks: &[Option<Block>]| blocks.iter().flatten().map(|block| block.len).sum::<usize>();
                let is_longer = |start: *mut u8| {
                    blocks.longer.iter().flatten().any(|block| block.start.as_ptr() == start)
                };
                let (longer, others): (Vec<_>, Vec<_>) =
                    held.iter().copied().partition(|&(start, _)| is_longer(start));
                let asked =
                    |held: &[(*mut u8, usize)]| held.iter().map(|&(_, size)| class(size)).sum::<usize>();
                let (kept, lent) = (sum(&blocks.kept), sum(&blocks.longer) + asked(&others));
                assert_eq!((blocks.kept_bytes, blocks.lent_bytes), (kept, lent));
                assert!(sum(&blocks.longer) <= 2 * asked(&longer));
                most = most.max(lent);
                assert!(lent + kept <= most && kept <= MOST_KEPT);
                assert!(blocks.kept.is_sorted_by_key(Option::is_none));
            });
        }
        for (start, size) in held {
            // SAFETY: as above.
            unsafe { heap.dealloc(start, layout(size)) };
        }
    }

    #[test]
    fn no_block_is_lent_to_two_threads() {
        let heap = Heap::new();
        std::thread::scope(|scope| {
            for thread in 1..5 {
                let heap = &heap;
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for _ in 0..60 {
                        let layout = layout(random.size(1, 9) << 20);
                        // SAFETY: each block is used within its size and freed once.
                        unsafe {
                            let start = heap.alloc(layout);
                            fill(start, layout.size(), thread as u8);
                            assert!(is_filled(start, layout.size(), thread as u8));
                            heap.dealloc(start, layout);
                        }
                    }
                });
            }
        });
    }
}
