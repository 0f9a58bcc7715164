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
