//! Memory that kernels write all of, whatever was in it: zeroing what is about to be written takes a pass of its own.

use std::mem::MaybeUninit;

use super::parallel::Disjoint;

/// Where a kernel writes its results: floats, or room for them.
pub struct Output<'a>(Disjoint<'a, f32>);

/// What a kernel hands back once all of its [`Output`] has been written.
pub struct Written<'a>(Option<Disjoint<'a, f32>>);

/// `len` floats that `write` has a kernel write.
///
/// # Errors
/// Those of `write`.
///
/// # Panics
/// If what comes back was written elsewhere.
pub fn collect<E>(
    len: usize,
    write: impl for<'a> FnOnce(Output<'a>) -> Result<Written<'a>, E>,
) -> Result<Vec<f32>, E> {
    let mut values = Vec::with_capacity(len);
    let start: *const f32 = values.as_ptr();
    let room = &mut values.spare_capacity_mut()[..len];
    if cfg!(test) {
        // What reads before it writes shows in the tests.
        room.fill(MaybeUninit::new(f32::NAN));
    }
    let written = write(Output(Disjoint::over_room(room)))?;
    assert!(written.0.is_some_and(|all| all.is(start, len)), "the kernel wrote elsewhere");
    // SAFETY: that many values have been written.
    unsafe { values.set_len(len) };
    Ok(values)
}

impl<'a> Output<'a> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// To be written in parts by several threads.
    pub(super) fn into_disjoint(self) -> Disjoint<'a, f32> {
        self.0
    }
}

impl<'a> Written<'a> {
    /// # Safety
    /// All of `output` must have been written.
    pub(super) unsafe fn all_of(output: Disjoint<'a, f32>) -> Self {
        Self(Some(output))
    }

    /// Of a kernel that writes no floats.
    pub(super) fn nothing() -> Self {
        Self(None)
    }
}

impl<'a> From<&'a mut [f32]> for Output<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self(Disjoint::new(values))
    }
}

impl<'a> From<&'a mut Vec<f32>> for Output<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        Self(Disjoint::new(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_collected() {
        let all = collect(3, |output| {
            let output = output.into_disjoint();
            // SAFETY: the only part, and all of the output.
            unsafe {
                output.part(0..3).copy_from_slice(&[1.0, 2.0, 3.0]);
                Ok::<_, ()>(Written::all_of(output))
            }
        });
        assert_eq!(all, Ok(vec![1.0, 2.0, 3.0]));
        assert_eq!(collect(3, |_| Err("no")), Err("no"));
    }

    #[test]
    #[should_panic(expected = "elsewhere")]
    fn what_was_not_written_is_not_collected() {
        let _ = collect(3, |_| Ok::<_, ()>(Written::nothing()));
    }
}
