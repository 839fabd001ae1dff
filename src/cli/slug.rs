//! A prompt as a part of a file name: lower case, short, the same on every system.

/// Long enough to recognise a prompt, short enough for every file system with a folder and a seed around it.
const MAX_LENGTH: usize = 60;

/// What stands for a text without a single letter or digit.
const NOTHING: &str = "picture";

/// Letters and digits of `text` joined by dashes; never empty, never a separator or a name Windows reserves.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        match folded(c) {
            Some(letters) => word.push_str(letters),
            None if c.is_ascii_alphanumeric() => word.push(c.to_ascii_lowercase()),
            // "don't" is one word.
            None if c == '\'' || c == '’' => {}
            None => {
                if !word.is_empty() && !append(&mut slug, &word) {
                    break;
                }
                word.clear();
            }
        }
    }
    if slug.is_empty() {
        return NOTHING.to_owned();
    }
    if is_reserved(&slug) {
        slug.push('-');
        slug.push_str(NOTHING);
    }
    slug
}

/// Adds a word if it fits; a first word that does not fit is cut.
fn append(slug: &mut String, word: &str) -> bool {
    if slug.is_empty() {
        slug.push_str(&word[..word.len().min(MAX_LENGTH)]);
        return true;
    }
    let fits = slug.len() + 1 + word.len() <= MAX_LENGTH;
    if fits {
        slug.push('-');
        slug.push_str(word);
    }
    fits
}

/// The ASCII spelling of accented Latin letters.
fn folded(c: char) -> Option<&'static str> {
    Some(match c.to_lowercase().next()? {
        'à' | 'á' | 'â' | 'ã' | 'å' | 'ā' | 'ă' | 'ą' => "a",
        'ä' | 'æ' => "ae",
        'ç' | 'ć' | 'č' => "c",
        'ď' | 'đ' | 'ð' => "d",
        'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ė' | 'ę' | 'ě' => "e",
        'ğ' => "g",
        'ì' | 'í' | 'î' | 'ï' | 'ī' | 'į' | 'ı' => "i",
        'ł' => "l",
        'ñ' | 'ń' | 'ň' => "n",
        'ò' | 'ó' | 'ô' | 'õ' | 'ø' | 'ō' | 'ő' => "o",
        'ö' | 'œ' => "oe",
        'ř' => "r",
        'ś' | 'š' | 'ş' | 'ș' => "s",
        'ß' => "ss",
        'ť' | 'ţ' | 'ț' => "t",
        'þ' => "th",
        'ù' | 'ú' | 'û' | 'ū' | 'ů' | 'ű' => "u",
        'ü' => "ue",
        'ý' | 'ÿ' => "y",
        'ź' | 'ż' | 'ž' => "z",
        _ => return None,
    })
}

fn is_reserved(name: &str) -> bool {
    let numbered =
        |device: &str| name.strip_prefix(device).is_some_and(|n| matches!(n.as_bytes(), [b'0'..=b'9']));
    matches!(name, "con" | "prn" | "aux" | "nul") || numbered("com") || numbered("lpt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_joined_by_dashes() {
        assert_eq!(slug("A red apple, on (yellow:1.3)!"), "a-red-apple-on-yellow-1-3");
        assert_eq!(slug("don't  --stop"), "dont-stop");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("Crème brûlée, Ærøskøbing, Straße"), "creme-brulee-aeroskobing-strasse");
    }

    #[test]
    fn it_is_never_empty_or_reserved() {
        for text in ["", "  ", "?!", "猫", "..", "/"] {
            assert_eq!(slug(text), "picture");
        }
        assert_eq!(slug("CON"), "con-picture");
        assert_eq!(slug("lpt1"), "lpt1-picture");
        assert_eq!(slug("con artist"), "con-artist");
    }

    #[test]
    fn it_is_cut_at_a_word() {
        let long = slug(&"many words ".repeat(20));
        assert!(long.len() <= 60 && long.ends_with("-many"), "{long}");
        assert_eq!(slug(&"x".repeat(100)), "x".repeat(60));
        assert_eq!(slug(&"é".repeat(100)).len(), 60);
    }
}
