//! Names and values in two columns.

/// Two columns; further lines of a value stay in the second.
pub fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let row = |(name, value): &(&str, String)| {
        let value = value.lines().collect::<Vec<_>>().join(&format!("\n{:width$}  ", ""));
        format!("{name:width$}  {value}")
    };
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}
