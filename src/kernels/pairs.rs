//! Weights whose neighbors' products are summed in 16 bits: how small they are made for that, and which are cut.

/// The most that two neighbors of one sign may make: 255 times as much is below 2^15.
pub const LARGEST_PAIR: i16 = 128;

/// Factors that are tried.
const STEPS: usize = 16;

/// What `count` integer weights of an output are multiplied with before they are rounded again and their pairs [`cut`], so
/// that least is lost, if pairs of one sign have these `sums` where they are too large.
///
/// A smaller factor makes all errors larger, a larger one cuts more, and 1 leaves the others as they are.
pub fn factor(count: usize, sums: &[f32]) -> f32 {
    let largest = sums.iter().fold(0.0, |largest: f32, sum| largest.max(*sum));
    let limit = f32::from(LARGEST_PAIR);
    if largest <= limit {
        return 1.0;
    }
    let least = limit / largest;
    let cost = |factor: f32| {
        let rounding = if factor == 1.0 { 0.0 } else { count as f32 / (12.0 * factor * factor) };
        // Each of the two takes half of it.
        rounding + sums.iter().map(|sum| (sum - limit / factor).max(0.0).powi(2) / 2.0).sum::<f32>()
    };
    let candidates = (0..=STEPS).map(|step| least + (1.0 - least) * step as f32 / STEPS as f32);
    let best = candidates.map(|factor| (cost(factor), factor)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(least, |(_, factor)| factor)
}

/// Makes no pair of two neighbors of one sign larger than [`LARGEST_PAIR`]: what is too much is taken from both alike.
#[inline(always)]
pub fn cut(values: &mut [i8]) {
    for pair in values.as_chunks_mut::<2>().0 {
        *pair = cut_pair(*pair);
    }
}

/// The same of one pair.
#[inline(always)]
pub fn cut_pair(pair: [i8; 2]) -> [i8; 2] {
    // As one number of 16 bits, so that loops over pairs run on vectors.
    let both = i16::from_le_bytes(pair.map(i8::cast_unsigned));
    let (a, b) = ((both << 8) >> 8, both >> 8);
    let sum = a + b;
    // Two of different signs make 127 at most.
    let excess = (sum - LARGEST_PAIR).max(0) + (sum + LARGEST_PAIR).min(0);
    let half = excess >> 1;
    let both = ((a - half) & 0xff) | ((b - (excess - half)) << 8);
    both.to_le_bytes().map(u8::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_cut_alike_and_only_where_they_are_too_large() {
        for a in -127..=127i8 {
            for b in -127..=127i8 {
                let [c, d] = cut_pair([a, b]);
                let (sum, found) = (i16::from(a) + i16::from(b), i16::from(c) + i16::from(d));
                assert_eq!(found, sum.clamp(-LARGEST_PAIR, LARGEST_PAIR), "{a} {b}");
                let lost = (i16::from(a) - i16::from(c), i16::from(b) - i16::from(d));
                assert!((lost.0 - lost.1).abs() <= 1 && c.signum() * a.signum() >= 0, "{a} {b}: {c} {d}");
            }
        }
        let mut values = [127, 127, -100, -50, 100, -100, 127];
        cut(&mut values);
        assert_eq!(values, [64, 64, -89, -39, 100, -100, 127]);
    }

    #[test]
    fn factors_weigh_cuts_against_steps() {
        assert_eq!(factor(100, &[]), 1.0);
        assert_eq!(factor(100, &[128.0]), 1.0);
        // Few cuts among many weights are cheaper than larger steps for all, many deep ones are not.
        assert_eq!(factor(5000, &[140.0]), 1.0);
        assert!(factor(100, &[140.0]) < 1.0);
        assert_eq!(factor(100, &[254.0; 50]), 128.0 / 254.0);
        let between = factor(5000, &[165.0; 2]);
        assert!(128.0 / 165.0 < between && between < 1.0, "{between}");
    }
}
