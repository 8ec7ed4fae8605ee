//! What several measurements of one thing say together.

use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Time.
    Seconds,
    /// Memory.
    Kibibytes,
}

impl Unit {
    /// A measurement, as it is easy to read.
    pub fn shown(self, value: f64) -> String {
        match self {
            Unit::Kibibytes => format!("{value:.0} KiB"),
            Unit::Seconds if value >= 10.0 => format!("{value:.1} s"),
            Unit::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Unit::Seconds if value >= 0.01 => format!("{:.0} ms", value * 1e3),
            Unit::Seconds => format!("{:.2} ms", value * 1e3),
        }
    }
}

/// What was measured in all rounds, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds what one round has measured.
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// How many rounds there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one in the middle; the mean of the two middle ones if their number is even.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            length if length % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The least.
    pub fn min(&self) -> Option<f64> {
        self.sorted().first().copied()
    }

    /// The most.
    pub fn max(&self) -> Option<f64> {
        self.sorted().last().copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: &[f64]) -> Samples {
        Samples(seconds.to_vec())
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0]).median(), Some(3.0));
        assert_eq!(samples(&[9.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(samples(&[4.0, 1.0, 2.0, 100.0]).median(), Some(3.0));
    }

    #[test]
    fn the_spread_is_from_the_shortest_to_the_longest() {
        let samples = samples(&[2.0, 0.5, 7.0]);
        assert_eq!((samples.min(), samples.max()), (Some(0.5), Some(7.0)));
    }
}
