//! Content negotiation by the Accept header.

use poem::Request;

/// The form that the Accept header prefers, on ties the one it names first; `None` if it accepts none. The first of `forms` is
/// the default.
pub fn pick<F: Copy>(request: &Request, forms: &[(F, &str)]) -> Option<F> {
    let accept: Vec<&str> = request.headers().get_all("accept").iter().filter_map(|v| v.to_str().ok()).collect();
    best(&accept.join(","), forms)
}

fn best<F: Copy>(accept: &str, forms: &[(F, &str)]) -> Option<F> {
    let mut best: Option<(f32, F)> = None;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
        let weight = weight.unwrap_or(0.0);
        let matches = |known: &str| match kind.strip_suffix('*') {
            Some("*/" | "") => true,
            Some(start) => start.ends_with('/') && known.starts_with(start),
            None => known == kind,
        };
        let found = forms.iter().find(|(_, known)| matches(known));
        if let Some((form, _)) = found
            && weight > best.map_or(0.0, |(best, _)| best)
        {
            best = Some((weight, *form));
        }
    }
    // Without the header every form is acceptable.
    if accept.trim().is_empty() { forms.first().map(|(form, _)| *form) } else { best.map(|(_, form)| form) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_picks_the_form() {
        let forms = [('j', "application/json"), ('c', "text/csv"), ('a', "application/vnd.apache.arrow.stream")];
        for (accept, expected) in [
            ("", Some('j')),
            ("*/*", Some('j')),
            ("application/*", Some('j')),
            ("text/*", Some('c')),
            ("Text/CSV; charset=utf-8", Some('c')),
            ("application/vnd.apache.arrow.stream", Some('a')),
            ("text/html, */*;q=0.1", Some('j')),
            ("application/json;q=0.5, text/csv", Some('c')),
            ("text/csv;q=0, application/json;q=0.1", Some('j')),
            ("text/csv;q=0", None),
            ("text/html", None),
            ("application/vnd.apache.parquet", None),
            ("nonsense", None),
        ] {
            assert_eq!(best(accept, &forms), expected, "{accept}");
        }
    }
}
