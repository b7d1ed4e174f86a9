//! Matching of paths: `*` is any text without `/`, `**` any number of folders.

/// True when `path` is one that `pattern` means; both without a leading `/`.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_matches('/').split('/').collect();
    let path: Vec<&str> = path.trim_matches('/').split('/').collect();
    folders(&pattern, &path)
}

fn folders(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => (0..=path.len()).any(|skip| folders(rest, path.get(skip..).unwrap_or_default())),
        (Some((first, pattern)), Some((name, path))) => {
            segment(first.as_bytes(), name.as_bytes()) && folders(pattern, path)
        }
        _ => false,
    }
}

fn segment(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| segment(rest, name.get(skip..).unwrap_or_default())),
        (Some((p, pattern)), Some((n, name))) => p == n && segment(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        assert!(matches("sys/**/create", "sys/a/b/create"));
        assert!(matches("sys/**/create", "sys/create"));
        assert!(!matches("sys/**/create", "sys/a/create2"));
        assert!(matches("run/mdevd/claims/*.json", "run/mdevd/claims/x.json"));
        assert!(!matches("run/mdevd/claims/*.json", "run/mdevd/claims/x.json.tmp"));
        assert!(!matches("run/*", "run/mdevd/lock"));
        assert!(matches("**", "run/mdevd/lock"));
        assert!(matches("/run/mdevd/lock", "run/mdevd/lock"));
        assert!(matches("run/*/.c*json", "run/a/.c.json"));
    }
}
