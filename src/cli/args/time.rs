//! How a flag spells a time; what it limits is said where the flag is.

use std::time::Duration;

/// Reads `15s`, `1.5m`, `500ms`; a number alone is seconds.
///
/// # Errors
/// Says what was expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit {
        "ms" => Some(0.001),
        "" | "s" => Some(1.0),
        "m" | "min" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let seconds = number.trim().parse::<f64>().ok().zip(scale).map(|(number, scale)| number * scale);
    let possible = seconds.filter(|seconds| (0.001..=1e7).contains(seconds)).map(Duration::from_secs_f64);
    possible.ok_or_else(|| "expected a time, e.g. 15s, 1.5m or 500ms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        for (text, seconds) in
            [("15s", 15.0), ("15", 15.0), ("1.5m", 90.0), ("2min", 120.0), ("500ms", 0.5), ("1 h", 3600.0)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for wrong in ["", "s", "0", "-1s", "NaN", "inf", "1e9h", "1d", "15 s s", "1:30"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
