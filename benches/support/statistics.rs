//! Repeated measurements, their statistics, and tables.

/// Repeated measurements of one quantity.
pub struct Spread(Vec<f64>);

impl Spread {
    /// Sorts `values`, of which there must be at least one.
    pub fn of(measurements: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = measurements.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        assert!(!sorted.is_empty(), "nothing was measured");
        Self(sorted)
    }

    /// Returns the number of measurements.
    #[allow(clippy::len_without_is_empty, reason = "there is always a measurement")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn least(&self) -> f64 {
        self.percentile(0)
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    pub fn most(&self) -> f64 {
        self.percentile(100)
    }

    /// Returns the least measurement that `percent` of them do not exceed.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// Formats the median with the extremes.
    pub fn show(&self, decimals: usize) -> String {
        let (median, least, most) = (self.median(), self.least(), self.most());
        format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})")
    }
}

/// Measurements of several subjects in turn: what slows the machine for a moment slows them all.
pub struct Rounds {
    by_subject: Vec<Vec<f64>>,
}

impl Rounds {
    /// Measures every subject once in each of `count` rounds.
    pub fn measure<T>(
        count: usize,
        subjects: &[T],
        mut measure: impl FnMut(&T) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Self> {
        let mut by_subject = vec![Vec::new(); subjects.len()];
        for _ in 0..count {
            for (subject, measured) in subjects.iter().zip(&mut by_subject) {
                measured.push(measure(subject)?);
            }
        }
        Ok(Self { by_subject })
    }

    fn column(&self, subject: usize) -> impl Iterator<Item = f64> {
        self.by_subject.get(subject).into_iter().flatten().copied()
    }

    pub fn of(&self, subject: usize) -> Spread {
        Spread::of(self.column(subject))
    }

    /// Returns the ratio of two subjects in each round.
    pub fn over(&self, subject: usize, baseline: usize) -> Spread {
        let pairs = self.column(subject).zip(self.column(baseline));
        Spread::of(pairs.map(|(ours, theirs)| ours / theirs))
    }
}

/// Prints `rows` under `head`, the first column left-aligned and the others right-aligned.
pub fn print_table<const N: usize>(
    title: &str,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let table: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    println!("\n{title}");
    for row in &table {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            if column == 0 {
                format!("  {cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        println!("{}", cells.collect::<Vec<_>>().join("   "));
    }
}
