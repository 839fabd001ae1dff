//! Attention whose keys and values are rounded to 16 bits before it begins: what is done for each head; to what they
//! are rounded, and how that is multiplied, are its formats'.

use super::super::aligned::AlignedBuf;
use super::super::isa::Isa;
use super::super::output::{Output, Written};
use super::super::parallel::{Disjoint, for_each_index, with_scratch};
use super::super::simd::Kernel;
use super::Attention;
use super::part::{KEY_BLOCK, Part, Results, Rows};

/// What queries, keys and values of a head become, and how that lies in memory.
pub trait Format: Copy + Send + Sync {
    /// Numbers that a head's keys become.
    fn keys_len(self) -> usize;

    /// Numbers that a head's values become.
    fn values_len(self) -> usize;

    /// f32 beside both.
    fn floats_len(self) -> usize;

    /// Numbers that a panel of `lanes` queries becomes.
    fn queries_len(self, lanes: usize) -> usize;

    /// f32 that a panel carries from one block of keys to the next.
    fn state_len(self, lanes: usize) -> usize;

    /// Computes `task` compiled for `isa`.
    fn attend(isa: Isa, task: Task<'_, Self>);
}

/// Rounds keys and values of one head, as a [`Kernel`] of each format.
pub struct Pack<'a, F> {
    pub format: F,
    /// Queries, which are not rounded here, and how many.
    pub q: Rows<'a>,
    pub q_len: usize,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    /// All of these are zero.
    pub keys: &'a mut [i16],
    pub values: &'a mut [i16],
    pub floats: &'a mut [f32],
}

/// Some queries of one head over all its keys.
pub struct Task<'a, F> {
    pub format: F,
    /// What [`Pack`] made of the head.
    pub keys: &'a [i16],
    pub values: &'a [i16],
    pub floats: &'a [f32],
    /// Of the task's queries.
    pub q: Rows<'a>,
    pub scale: f32,
    pub queries: usize,
    /// Of one block and panel, `[KEY_BLOCK rounded up][lanes]`.
    pub scores: &'a mut [f32],
    /// What becomes of them, as many numbers as a block has scores.
    pub exponentials: &'a mut [i16],
    /// The panels' queries.
    pub rounded: &'a mut [i16],
    /// What the panels carry.
    pub state: &'a mut [f32],
    pub results: Results<'a>,
}

/// Attention in `format` by tiles of so many rows and columns; the rest is that of [`Attention::apply`].
pub fn apply<'a, F>(
    sizes: &Attention,
    isa: Isa,
    format: F,
    (height, lanes): (usize, usize),
    [q, k, v]: [&[f32]; 3],
    output: Output<'a>,
) -> Written<'a>
where
    F: Format,
    for<'p> Pack<'p, F>: Kernel<Output = ()>,
{
    let Attention { batch, heads, head_dim, q_len, kv_len, .. } = *sizes;
    let (keys_len, values_len, floats_len) = (format.keys_len(), format.values_len(), format.floats_len());
    let count = batch * heads;
    let mut keys = AlignedBuf::<i16>::zeros(count * keys_len);
    let mut values = AlignedBuf::<i16>::zeros(count * values_len);
    let mut floats = vec![0.0; count * floats_len];
    {
        let keys = Disjoint::new(keys.as_mut_slice());
        let values = Disjoint::new(values.as_mut_slice());
        let floats = Disjoint::new(&mut floats);
        for_each_index(count, |index| {
            let (item, column) = (index / heads, index % heads * head_dim);
            // SAFETY: each head is packed once, into parts of its own.
            let (keys, values, floats) = unsafe {
                (
                    keys.part(index * keys_len..(index + 1) * keys_len),
                    values.part(index * values_len..(index + 1) * values_len),
                    floats.part(index * floats_len..(index + 1) * floats_len),
                )
            };
            isa.run(Pack {
                format,
                q: Rows { values: &q[item * q_len * sizes.q_stride + column..], stride: sizes.q_stride },
                q_len,
                k: Rows { values: &k[item * kv_len * sizes.k_stride + column..], stride: sizes.k_stride },
                v: Rows { values: &v[item * kv_len * sizes.v_stride + column..], stride: sizes.v_stride },
                keys,
                values,
                floats,
            });
        });
    }

    let scores_len = KEY_BLOCK.next_multiple_of(height) * lanes;
    let exponentials_len = KEY_BLOCK * lanes;
    let (queries_len, state_len) = (format.queries_len(lanes), format.state_len(lanes));
    let output = output.into_disjoint();
    let panel_bytes = queries_len * size_of::<i16>() + state_len * size_of::<f32>();
    sizes.for_each_part(lanes, panel_bytes, |part| {
        let Part { item, head, first, queries, panels } = part;
        let index = item * heads + head;
        with_scratch(panels * state_len + scores_len, 0, |scratch| {
            scratch.words.reserve_len(panels * queries_len + exponentials_len);
            let (scores, state) = scratch.floats.as_mut_slice().split_at_mut(scores_len);
            let (exponentials, rounded) = scratch.words.as_mut_slice().split_at_mut(exponentials_len);
            let task = Task {
                format,
                keys: &keys.as_slice()[index * keys_len..][..keys_len],
                values: &values.as_slice()[index * values_len..][..values_len],
                floats: &floats[index * floats_len..][..floats_len],
                q: Rows {
                    values: &q[(item * q_len + first) * sizes.q_stride + head * head_dim..],
                    stride: sizes.q_stride,
                },
                scale: sizes.scale,
                queries,
                scores,
                exponentials,
                rounded: &mut rounded[..panels * queries_len],
                state: &mut state[..panels * state_len],
                results: Results::of(sizes, part, &output),
            };
            F::attend(isa, task);
        });
    });
    // SAFETY: parts cover all queries of all heads, whose values lie side by side.
    unsafe { Written::all_of(output) }
}
