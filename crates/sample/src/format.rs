//! Rows as CSV and JSON text.

use super::COLUMNS;

/// Appends the column names as a CSV record.
pub fn csv_header(out: &mut Vec<u8>) {
    csv_row(&COLUMNS, out);
}

/// Appends one CSV record (RFC 4180, terminated by `\n`), quoted only where needed.
pub fn csv_row(fields: &[&str], out: &mut Vec<u8>) {
    for (i, field) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let mut rest = field.as_bytes();
        if find(rest, |b| matches!(b, b',' | b'"' | b'\n' | b'\r')).is_none() {
            out.extend_from_slice(rest);
            continue;
        }
        out.push(b'"');
        while let Some(at) = find(rest, |b| b == b'"') {
            out.extend_from_slice(&rest[..=at]);
            out.push(b'"');
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
        out.push(b'"');
    }
    out.push(b'\n');
}

/// Appends one JSON object whose values are all strings, and a newline.
pub fn ndjson_row(columns: &[&str], fields: &[&str], out: &mut Vec<u8>) {
    for (i, (name, field)) in columns.iter().zip(fields).enumerate() {
        out.extend_from_slice(if i == 0 { b"{\"" } else { b",\"" });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":\"");
        let mut rest = field.as_bytes();
        while let Some(at) = find(rest, |b| b < b' ' || b == b'"' || b == b'\\') {
            out.extend_from_slice(&rest[..at]);
            match rest[at] {
                b'\n' => out.extend_from_slice(b"\\n"),
                mark @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', mark]),
                control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
            }
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

/// The index of the first special byte. Within a chunk there are no branches, so that compilers use SIMD.
fn find(bytes: &[u8], special: impl Fn(u8) -> bool) -> Option<usize> {
    let hit = |chunk: &[u8]| chunk.iter().fold(false, |hit, &b| hit | special(b));
    let start = 64 * bytes.chunks(64).position(hit)?;
    let within = bytes[start..].iter().position(|&b| special(b))?;
    Some(start + within)
}
