//! The names of TAESD's own files (Bohan 2023) in diffusers' words: files of numbered layers.

/// Whether `names` are those of one half of TAESD as its author publishes it, and which.
pub fn half<'a>(mut names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    let numbered = |name: &str| name.split_once('.').is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    if !names.clone().all(numbered) {
        return None;
    }
    // The decoder begins with a clamp, which has no weights.
    if names.clone().any(|name| name == "0.weight") {
        Some("encoder")
    } else {
        names.any(|name| name == "1.weight").then_some("decoder")
    }
}

/// The diffusers name of `name` in the file of one half.
pub fn to_diffusers(half: &str, name: &str) -> Option<String> {
    let (number, rest) = name.split_once('.')?;
    let number = number.parse::<usize>().ok()?;
    let number = if half == "decoder" { number.checked_sub(1)? } else { number };
    Some(format!("{half}.layers.{number}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_told_apart() {
        let of = |names: &[&'static str]| half(names.iter().copied());
        assert_eq!(of(&["0.weight", "1.conv.0.weight"]), Some("encoder"));
        assert_eq!(of(&["1.weight", "3.conv.0.weight"]), Some("decoder"));
        assert_eq!(of(&["1.weight", "conv.weight"]), None);
        assert_eq!(to_diffusers("decoder", "7.weight").unwrap(), "decoder.layers.6.weight");
        assert_eq!(to_diffusers("encoder", "7.conv.0.bias").unwrap(), "encoder.layers.7.conv.0.bias");
        assert_eq!(to_diffusers("decoder", "0.weight"), None);
    }
}
