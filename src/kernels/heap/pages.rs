//! Blocks of pages: asked for, given back, and moved from one to another; who gets which is the heap's.

use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed, munmap};

/// A huge page of x86-64, and of ARM with small pages of 4 KiB.
pub const HUGE: usize = 2 << 20;
/// Blocks at most whose pages become those of another one.
pub const PIECES: usize = 16;

#[derive(Clone, Copy)]
pub struct Block {
    pub start: NonNull<u8>,
    pub len: usize,
}

// SAFETY: a free block belongs to whoever holds it.
unsafe impl Send for Block {}

impl Block {
    /// How many it begins with.
    pub fn huge_pages(&self) -> usize {
        if self.start.align_offset(HUGE) == 0 { self.len / HUGE } else { 0 }
    }

    /// Where its byte `at` lies, or its end.
    pub fn after(&self, at: usize) -> NonNull<u8> {
        debug_assert!(at <= self.len);
        // SAFETY: inside the block, or just behind it.
        unsafe { self.start.add(at) }
    }
}

/// Gives a block back to the system.
///
/// # Safety
/// It must be whole pages of [`map`], which nobody uses any more.
pub unsafe fn unmap(block: Block) {
    if block.len > 0 {
        // SAFETY: the caller's promise.
        let unmapped = unsafe { munmap(block.start.as_ptr().cast(), block.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Makes huge pages that were in use the first ones of a fresh block, so that the kernel needn't clear others. A block
/// consists of several mappings then, none of which ends within a huge page; that is why they move one by one.
///
/// # Safety
/// The pieces must be huge pages that nobody uses, the block one of [`map`] that nobody has seen, and no shorter.
pub unsafe fn move_pages(pieces: [Option<Block>; PIECES], to: Block) -> Option<()> {
    let mut moved = 0;
    for piece in pieces.into_iter().flatten() {
        for at in (0..piece.len).step_by(HUGE) {
            let (from, page) = (piece.after(at).as_ptr().cast(), to.after(moved).as_ptr().cast());
            moved += HUGE;
            // SAFETY: the caller's promise: both are huge pages that nobody else knows of.
            if unsafe { mremap_fixed(from, HUGE, HUGE, MremapFlags::MAYMOVE, page) }.is_err() {
                // SAFETY: the page is the piece's still.
                unsafe { unmap(Block { start: piece.after(at), len: HUGE }) };
                let (access, flags) =
                    (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
                // SAFETY: the failed move has left a hole in the block, or the page, which is still nobody's.
                unsafe { mmap_anonymous(page, HUGE, access, flags) }.ok()?;
            }
        }
    }
    Some(())
}

/// Fresh memory of `len` bytes, of which `size` will be used: huge pages cover no more than these.
pub fn map(len: usize, size: usize) -> Option<Block> {
    let huge = size / HUGE * HUGE;
    let margin = if huge > 0 { HUGE } else { 0 };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping wherever there is room touches nothing that exists.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), len + margin, access, MapFlags::PRIVATE) };
    let start: *mut u8 = start.ok()?.cast();
    let before = if huge > 0 { start.align_offset(HUGE).min(HUGE) } else { 0 };
    // SAFETY: inside the mapping, which is longer by `margin`.
    let aligned = unsafe { start.add(before) };
    for (from, bytes) in [(start, before), (aligned.wrapping_add(len), margin - before)] {
        if bytes > 0 {
            // SAFETY: whole pages of the mapping outside of the block, which nobody has seen yet.
            let unmapped = unsafe { munmap(from.cast(), bytes) };
            debug_assert!(unmapped.is_ok());
        }
    }
    if huge > 0 {
        // SAFETY: the block's own pages; advice changes no contents. A kernel without huge pages refuses.
        let _ = unsafe { madvise(aligned.cast(), huge, Advice::LinuxHugepage) };
    }
    NonNull::new(aligned).map(|start| Block { start, len })
}
