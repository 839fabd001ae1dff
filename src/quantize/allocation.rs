//! Which layers get how many bits: combinations from the smallest to the best, by what each layer was measured to cost.

use super::Bits;

/// A layer that may have any number of bits, and what it takes and costs alone with each, in the order of [`Bits::ALL`].
#[derive(Debug, Clone)]
pub struct Candidate {
    /// In the file.
    pub bytes: [u64; Bits::ALL.len()],
    /// Energy of the error in parts of the signal's at each of some timesteps, as many for all.
    pub errors: [Vec<f64>; Bits::ALL.len()],
}

impl Candidate {
    fn error(&self, bits: Bits, timestep: usize) -> f64 {
        self.errors[bits as usize][timestep]
    }
}

/// What less is taken for: 120 dB, beyond anything that floats keep.
const LEAST_ERROR: f64 = 1e-12;

/// The signal to error in dB, on average over the timesteps, that layers leave together if their errors have nothing
/// to do with each other.
pub fn expected(candidates: &[Candidate], bits: &[Bits]) -> f64 {
    mean_decibel(&totals(candidates, bits))
}

/// Energies of all errors together at each timestep.
fn totals(candidates: &[Candidate], bits: &[Bits]) -> Vec<f64> {
    let timesteps = candidates.first().map_or(0, |candidate| candidate.errors[0].len());
    let layers = || candidates.iter().zip(bits);
    (0..timesteps).map(|at| layers().map(|(layer, bits)| layer.error(*bits, at)).sum()).collect()
}

fn mean_decibel(totals: &[f64]) -> f64 {
    let sum: f64 = totals.iter().map(|total| -10.0 * total.max(LEAST_ERROR).log10()).sum();
    sum / totals.len().max(1) as f64
}

/// The bits of all candidates: four for each, then always with more for the one whose bytes bring most dB, until more
/// bring nothing.
///
/// Bits that are given in this order are the best for the bytes they take, but for what is left of these by the last
/// one (a knapsack whose items can be cut, Dantzig 1957), as far as gains don't depend on each other: they do, as a
/// sum of errors is one logarithm, and are therefore computed anew each time.
pub fn frontier(candidates: &[Candidate]) -> Vec<Vec<Bits>> {
    let mut bits = vec![Bits::Four; candidates.len()];
    let mut combinations = vec![bits.clone()];
    loop {
        let totals = totals(candidates, &bits);
        let before = mean_decibel(&totals);
        let steps = candidates.iter().zip(&bits).enumerate().flat_map(|(number, (candidate, &from))| {
            let totals = &totals;
            Bits::ALL.into_iter().filter(move |to| *to > from).filter_map(move |to| {
                let changed = totals
                    .iter()
                    .enumerate()
                    .map(|(at, total)| total - candidate.error(from, at) + candidate.error(to, at));
                let gain = mean_decibel(&changed.collect::<Vec<_>>()) - before;
                let taken = candidate.bytes[to as usize].saturating_sub(candidate.bytes[from as usize]);
                (gain > 0.0).then(|| (gain / taken.max(1) as f64, number, to))
            })
        });
        // Of equals the first.
        let best = steps.reduce(|best, step| if step.0 > best.0 { step } else { best });
        let Some((_, number, to)) = best else { return combinations };
        bits[number] = to;
        combinations.push(bits.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(weights: u64, four: f64, eight: f64) -> Candidate {
        let errors = [four, eight, 0.0].map(|error| vec![error, 2.0 * error]);
        Candidate { bytes: [weights / 2, weights, 2 * weights], errors }
    }

    fn bytes(candidates: &[Candidate], bits: &[Bits]) -> u64 {
        candidates.iter().zip(bits).map(|(candidate, bits)| candidate.bytes[*bits as usize]).sum()
    }

    /// Of all combinations that take no more than `limit`.
    fn best(candidates: &[Candidate], limit: u64) -> f64 {
        let count = Bits::ALL.len().pow(candidates.len() as u32);
        let all = (0..count).map(|mut number| {
            let mut next = || {
                let bits = Bits::ALL[number % Bits::ALL.len()];
                number /= Bits::ALL.len();
                bits
            };
            candidates.iter().map(|_| next()).collect::<Vec<_>>()
        });
        let fitting = all.filter(|bits| bytes(candidates, bits) <= limit);
        fitting.map(|bits| expected(candidates, &bits)).max_by(f64::total_cmp).unwrap()
    }

    #[test]
    fn combinations_grow_and_are_nearly_the_best_of_all() {
        let candidates: Vec<Candidate> = [
            (1000, 1e-2, 1e-5),
            (400, 2e-2, 3e-5),
            (3000, 1e-3, 2e-5),
            (100, 5e-4, 4e-4),
            (2000, 3e-3, 1e-6),
            (700, 8e-3, 2e-4),
            (50, 1e-3, 1e-5),
        ]
        .map(|(weights, four, eight)| candidate(weights, four, eight))
        .to_vec();
        let combinations = frontier(&candidates);
        assert_eq!(combinations[0], [Bits::Four; 7]);
        assert_eq!(*combinations.last().unwrap(), [Bits::Sixteen; 7]);
        assert!(combinations.is_sorted_by(|a, b| bytes(&candidates, a) < bytes(&candidates, b)));
        assert!(combinations.is_sorted_by(|a, b| expected(&candidates, a) < expected(&candidates, b)));
        // None that takes as many bytes is better.
        for bits in &combinations {
            let (found, best) = (expected(&candidates, bits), best(&candidates, bytes(&candidates, bits)));
            assert!(best - found < 0.5, "{bits:?}: {found} of {best} dB");
        }
        // It takes turns: the first byte is for the layer that gains most for its size.
        assert_eq!(combinations[1][1], Bits::Eight, "{:?}", combinations[1]);
    }

    #[test]
    fn bits_that_bring_nothing_are_not_given() {
        let candidates = [candidate(10, 1e-3, 1e-3), candidate(10, 0.0, 0.0)];
        let combinations = frontier(&candidates);
        assert_eq!(combinations, [[Bits::Four; 2], [Bits::Sixteen, Bits::Four]]);
        assert_eq!(expected(&candidates, &combinations[1]), 120.0);
        let lone = expected(&candidates[..1], &[Bits::Four]);
        assert!((lone - (30.0 - 10.0 * 2f64.sqrt().log10())).abs() < 1e-9, "{lone}");
        assert_eq!(frontier(&[]), [[]; 1]);
    }
}
