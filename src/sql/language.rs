//! Language tags of descriptions, such as `en`, `pt-BR` and `zh-Hans` (BCP 47).

use std::collections::{BTreeMap, BTreeSet};

/// Feature to language to words, from low to high.
pub type Labels = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The language of descriptions if no other is asked for, and of features without words in the one that is.
pub const FALLBACK: &str = "en";

/// The languages that have words for features without labels.
pub const BUILT_IN: [&str; 2] = [FALLBACK, "id"];

/// A tag with the usual capitals: a language of two or three letters, then subtags of up to eight letters and digits. `None` if
/// the text is none.
pub fn canonical(tag: &str) -> Option<String> {
    let (mut parts, mut text) = (tag.split('-'), String::with_capacity(tag.len()));
    let language = parts.next().filter(|language| matches!(language.len(), 2 | 3))?;
    if !language.chars().all(|c| c.is_ascii_alphabetic()) {
        return None;
    }
    text.push_str(&language.to_ascii_lowercase());
    for part in parts {
        if !matches!(part.len(), 1..=8) || !part.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        text.push('-');
        let letters = part.chars().all(|c| c.is_ascii_alphabetic());
        match part.len() {
            2 if letters => text.push_str(&part.to_ascii_uppercase()),
            4 if letters => {
                text.push_str(&part[..1].to_ascii_uppercase());
                text.push_str(&part[1..].to_ascii_lowercase());
            }
            _ => text.push_str(&part.to_ascii_lowercase()),
        }
    }
    Some(text)
}

/// The languages of a segmentation with these labels: the built-in ones, and all that a label has.
pub fn offered(labels: &Labels) -> BTreeSet<&str> {
    let labelled = labels.values().flat_map(|languages| languages.keys().map(String::as_str));
    BUILT_IN.into_iter().chain(labelled).collect()
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn tags_have_one_spelling() {
        for (tag, spelled) in
            [("EN", "en"), ("pt-br", "pt-BR"), ("ZH-hANS-cn", "zh-Hans-CN"), ("es-419", "es-419"), ("fil", "fil")]
        {
            assert_eq!(canonical(tag).as_deref(), Some(spelled));
        }
        for none in ["", "e", "english", "e1", "en-", "en--us", "pt_BR", "en-abcdefghi", "en us", "été"] {
            assert_eq!(canonical(none), None, "{none}");
        }
    }
}
