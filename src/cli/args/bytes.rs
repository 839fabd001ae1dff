//! How a flag spells bytes; what they limit is said where the flag is.

/// Reads `600MB`, `1.5GB`: a number and its unit, of a thousand each or, with an i, of 1024.
///
/// # Errors
/// Says what was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 6] =
        [("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("KIB", 1024.0), ("MIB", 1048576.0), ("GIB", 1073741824.0)];
    let upper = text.trim().to_ascii_uppercase();
    let bytes = UNITS.iter().find_map(|(unit, factor)| {
        let number: f64 = upper.strip_suffix(unit)?.trim_end().parse().ok()?;
        (number > 0.0 && number < 1e9).then_some((number * factor) as u64)
    });
    bytes.ok_or_else(|| "expected a number and its unit, e.g. 600MB or 1.5GB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes =
            [("600MB", 600_000_000), ("1.5 gb", 1_500_000_000), ("512MiB", 512 << 20), ("1GiB", 1 << 30)];
        for (text, bytes) in sizes {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "600", "MB", "-1GB", "0MB", "NaNMB", "infGB", "1TB", "1e300GB", "6 0MB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
