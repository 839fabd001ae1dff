//! Inputs in another order, in which rows that are read one after the other lie side by side.

use super::{Gather, PAD, Plan, repeated};

/// Rows in an order of their own, and how a convolution reads them.
pub struct LinedUp {
    /// The input row that each of the new ones is, or padding where nothing is read.
    pub sources: Vec<u32>,
    pub gather: Gather,
}

impl Gather {
    /// The same over rows in such an order that, at each tap, output rows of one line read neighbors; none if they do
    /// already.
    ///
    /// With a stride, a line's pixels are parted by what they leave over when they are divided by it; an enlarged line is
    /// written out. Lines that are enlarged are still repeated by the table.
    pub fn lined_up(&self) -> Option<LinedUp> {
        let Plan::Image { kernel, in_height, ys, conv, .. } = &self.plan else { return None };
        if conv.stride == 1 && conv.enlarged.is_none() {
            return None;
        }
        let (seen, stride) = (conv.seen_size().1, conv.stride);
        // Even, so that rows that lie in pairs begin with the first of one.
        let part = seen.div_ceil(stride).next_multiple_of(2);
        let in_width = part * stride;
        let place = |x: usize| x % stride * part + x / stride;
        let mut line = vec![PAD; in_width];
        for x in 0..seen {
            line[place(x)] = repeated(x, conv.width, seen) as u32;
        }
        let lines = 0..conv.batch * conv.height;
        let in_line = |number: usize| {
            let first = (number * conv.width) as u32;
            line.iter().map(move |x| if *x == PAD { PAD } else { first + x })
        };
        let sources: Vec<u32> = lines.flat_map(in_line).collect();
        let taps = (0..conv.output_size().1).flat_map(|x| (0..*kernel).map(move |tap| x * stride + tap));
        let xs = taps.map(|padded| match padded.checked_sub(conv.padding.left) {
            Some(x) if x < seen => place(x) as u32,
            _ => PAD,
        });
        let xs = xs.collect();
        let plan =
            Plan::Image { kernel: *kernel, in_height: *in_height, in_width, ys: ys.clone(), xs, conv: *conv };
        Some(LinedUp { gather: Self { in_rows: sources.len(), plan, ..*self }, sources })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::convolutions;
    use super::*;

    fn table(gather: &Gather) -> Vec<u32> {
        let rows = gather.out_rows();
        let mut table = vec![0; gather.taps() * rows];
        gather.fill(0..rows, rows, &mut table);
        table
    }

    #[test]
    fn the_same_rows_are_read_side_by_side() {
        let mut lined = 0;
        for conv in convolutions() {
            let gather = Gather::conv2d(&conv);
            let Some(LinedUp { sources, gather: new }) = gather.lined_up() else { continue };
            lined += 1;
            let of = |row: u32| if row == PAD { PAD } else { sources[row as usize] };
            let found = table(&new);
            assert_eq!(found.iter().map(|row| of(*row)).collect::<Vec<_>>(), table(&gather), "{conv:?}");
            let width = conv.output_size().1;
            for line in found.chunks(width) {
                let both = line.windows(2).filter(|pair| !pair.contains(&PAD));
                both.for_each(|pair| assert_eq!(pair[1], pair[0] + 1, "{conv:?}"));
            }
        }
        assert_eq!(lined, 4);
        assert!(Gather::identity(5).lined_up().is_none());
    }
}
